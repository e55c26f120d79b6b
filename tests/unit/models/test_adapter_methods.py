"""Each way to tune a model against its formula, against PEFT, and against what it cannot do."""

import math

import peft
import pytest
import torch
from safetensors import safe_open
from tests.tiny import tiny_model_folder
from tests.unit.models.architectures import build
from tests.unit.models.test_adapter_laws import disturbed, logprobs
from tests.unit.models.test_forward import gradients
from torch import nn

from tunesmith.errors import ModelError
from tunesmith.models.adapter_config import (
    BitfitConfig,
    DoraConfig,
    FreezeConfig,
    Ia3Config,
    LoraConfig,
    LoraFaConfig,
    OloraConfig,
    PissaConfig,
    VeraConfig,
)
from tunesmith.models.adapters import attach, load_adapter, merge, save_adapter, trainable
from tunesmith.models.config import ModelConfig
from tunesmith.models.dora import row_norms, square_norms
from tunesmith.models.inventory import take_inventory
from tunesmith.models.inventory import trainable as planned
from tunesmith.models.load import load_base
from tunesmith.models.lora import FastLoraLinear
from tunesmith.models.orthogonal_config import OftConfig
from tunesmith.models.spectral import principal_factors, triangular_factors
from tunesmith.planning.adapters import adapter_problems
from tunesmith.recipe import Recipe

ALL = "all-linear"
WRITTEN_BY_PEFT = {
    "dora": peft.LoraConfig(r=3, lora_alpha=6, use_dora=True, target_modules=["q_proj", "down_proj"]),
    "pissa": peft.LoraConfig(r=3, lora_alpha=6, init_lora_weights="pissa", target_modules=ALL),
    "olora": peft.LoraConfig(r=3, lora_alpha=6, init_lora_weights="olora", target_modules=ALL),
    "rslora by patterns": peft.LoraConfig(
        r=3, use_rslora=True, rank_pattern={"q_proj": 5}, alpha_pattern={"v_proj": 2}, target_modules=ALL
    ),
    "adalora": peft.AdaLoraConfig(init_r=5, total_step=10, target_modules=ALL),
    "ia3": peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "vera": peft.VeraConfig(r=8, target_modules=["q_proj", "up_proj"]),
    "vera by its key": peft.VeraConfig(r=8, target_modules=["q_proj"], save_projection=False),
    "oft": peft.OFTConfig(oft_block_size=8, use_cayley_neumann=False, target_modules=ALL),
    "oft by a series": peft.OFTConfig(oft_block_size=16, target_modules=["v_proj"]),
    "oft of shared blocks": peft.OFTConfig(oft_block_size=16, block_share=True, coft=True, target_modules=["v_proj"]),
}


@pytest.mark.parametrize("config", WRITTEN_BY_PEFT.values(), ids=WRITTEN_BY_PEFT)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_folders_written_by_peft_are_read(config, tmp_path):
    theirs = peft.get_peft_model(build("llama"), config)
    with torch.no_grad():
        for parameter in trainable(theirs).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    want = logprobs(theirs)
    theirs.save_pretrained(str(tmp_path))
    found = logprobs(load_adapter(build("llama").requires_grad_(False), tmp_path))
    torch.testing.assert_close(found, want, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("type_", [torch.float32, torch.bfloat16])
def test_norms_without_the_product_equal_those_of_the_product(type_):
    torch.manual_seed(0)
    weight, a, b = torch.randn(700, 40).to(type_), torch.randn(6, 40), torch.randn(700, 6)
    found = row_norms(weight, a, b, 1.5, square_norms(weight))
    wanted = (weight.double() + 1.5 * b.double() @ a.double()).norm(dim=1)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)


def test_norms_that_cancel_stay_finite():
    a, b = torch.eye(2), -torch.eye(2)
    found = row_norms(torch.eye(2), a, b, 1.0, torch.ones(2))
    assert torch.isfinite(found).all()
    assert (found >= 0).all()


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_dora_equals_pefts_own_forward_and_backward(architecture, monkeypatch):
    model = disturbed(DoraConfig(rank=4, alpha=8), architecture)
    fast = logprobs(model)
    fast.sum().backward()
    ours = gradients(model)
    monkeypatch.setattr(FastLoraLinear, "is_alone", lambda self, adapters: False)
    slow = logprobs(model)
    slow.sum().backward()
    theirs = gradients(model)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-4, rtol=2e-4)


def test_dora_drops_only_the_adapters_input():
    model = disturbed(DoraConfig(rank=4, dropout=0.5))
    calm = logprobs(model.eval())
    torch.manual_seed(0)
    assert (logprobs(model.train()) - calm).abs().max() > 1e-4
    torch.testing.assert_close(logprobs(model.eval()), calm, atol=0, rtol=0)


def test_dora_in_bf16_begins_exactly_as_the_base():
    base = build("llama").bfloat16()
    want = logprobs(base)
    torch.testing.assert_close(logprobs(attach(base.requires_grad_(False), DoraConfig(rank=4))), want, atol=0, rtol=0)


def test_pissa_begins_with_the_best_approximation():
    weight = torch.randn(30, 20, generator=torch.Generator().manual_seed(2))
    values = torch.linalg.svdvals(weight)
    for iterations in (0, 16):
        a, b = principal_factors(weight, 5, 2.0, iterations)
        rest = weight - 2.0 * b @ a
        assert math.isclose(rest.norm().item(), values[5:].norm().item(), rel_tol=1e-4)
        torch.testing.assert_close(a @ a.T, torch.diag(values[:5] / 2), atol=1e-4, rtol=1e-4)


def test_olora_begins_with_orthonormal_columns():
    weight = torch.randn(30, 20, generator=torch.Generator().manual_seed(2))
    a, b = triangular_factors(weight, 5)
    torch.testing.assert_close(b.T @ b, torch.eye(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(b @ a[:, :5], weight[:, :5], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", [PissaConfig(rank=4), OloraConfig(rank=4, rslora=True)])
def test_what_began_with_weights_is_saved_as_plain_lora_of_twice_the_rank(settings, tmp_path):
    save_adapter(disturbed(settings), tmp_path, "base")
    config = peft.PeftConfig.from_pretrained(str(tmp_path))
    assert (config.r, config.init_lora_weights) == (8, True)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        names = [key for key in file.keys() if "lora_A" in key]  # noqa: SIM118
        assert {file.get_slice(name).get_shape()[0] for name in names} == {8}


def test_oft_rotates_by_the_angle_of_its_formula(tmp_path):
    """Q = [[0, -a], [a, 0]] turns by cos (1 - a^2) / (1 + a^2): .6 and .8 for a = .5 (arXiv:2306.07280)."""
    model = attach(build("llama").requires_grad_(False), OftConfig(block=2, targets=("o_proj",)))
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.o_proj")
    layer.oft_R["default"].weight.data.fill_(0.5)
    x = torch.zeros(1, 64)
    x[0, 0] = 1
    turned = layer.oft_R["default"](x)
    torch.testing.assert_close(turned[0, :2].abs(), torch.tensor([0.6, 0.8]))
    rotation = layer.oft_R["default"].get_weight()
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(64), atol=1e-6, rtol=0)


def test_lora_fa_trains_b_alone_and_goes_on_so(tmp_path):
    model = disturbed(LoraFaConfig(rank=4))
    assert all("lora_B" in name for name in trainable(model))
    save_adapter(model, tmp_path, "base")
    again = load_adapter(build("qwen2").requires_grad_(False), tmp_path, LoraFaConfig())
    assert trainable(again).keys() == trainable(model).keys()


@pytest.mark.parametrize(
    ("settings", "stored"),
    [(LoraConfig(), "dora"), (OftConfig(), "dora"), (DoraConfig(), "lora"), (VeraConfig(), "ia3")],
    ids=lambda one: one if isinstance(one, str) else one.word,
)
def test_a_folder_of_another_method_is_refused(settings, stored, tmp_path):
    methods = {"lora": LoraConfig(rank=2), "dora": DoraConfig(rank=2), "ia3": Ia3Config()}
    save_adapter(disturbed(methods[stored]), tmp_path, "base")
    with pytest.raises(ModelError, match="E313") as caught:
        load_adapter(build("qwen2"), tmp_path, settings)
    assert caught.value.diagnostic.fixes[0].set == {"model.adapter.method": stored}
    recipe = Recipe(model=ModelConfig(adapter=settings, adapter_path=str(tmp_path)))
    (problem,) = adapter_problems(recipe, take_inventory(tiny_model_folder(tmp_path / "model", "qwen2")))
    assert problem.code == "E313"
    assert problem.fixes[0].set == {"model.adapter.method": stored}


@pytest.mark.parametrize("begins", ["corda", "lora_ga"])
def test_an_adapter_of_another_base_is_refused(begins, tmp_path):
    save_adapter(disturbed(LoraConfig(rank=2)), tmp_path, "base")
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"init_lora_weights": true', f'"init_lora_weights": "{begins}"'))
    with pytest.raises(ModelError, match="E094"):
        load_adapter(build("qwen2"), tmp_path)


CANNOT = {
    "E310": (DoraConfig(rank=4096), "model.adapter.rank"),
    "E311": (OftConfig(block=60), "model.adapter.block"),
    "E312": (LoraConfig(targets=("q_prj",)), "model.adapter.targets"),
    "E316": (BitfitConfig(), "model.adapter.method"),
}


@pytest.mark.parametrize("code", CANNOT)
def test_what_cannot_apply_is_refused_with_what_can(code, tmp_path):
    settings, field = CANNOT[code]
    inventory = take_inventory(tiny_model_folder(tmp_path, "llama"))
    (problem,) = adapter_problems(Recipe(model=ModelConfig(adapter=settings)), inventory)
    assert problem.code == code
    assert problem.where.field == field
    (changes,) = (fix.set for fix in problem.fixes)
    changed = {key.rpartition(".")[2]: value for key, value in changes.items()}
    adapter = {**settings.model_dump(), **changed} if "method" not in changed else changed
    mended = ModelConfig.model_validate({"adapter": adapter})
    assert list(adapter_problems(Recipe(model=mended), inventory)) == []


def test_an_adapter_that_fits_has_no_problem(tmp_path):
    inventory = take_inventory(tiny_model_folder(tmp_path, "llama"))
    for settings in (LoraConfig(rank=32), OftConfig(block=16), VeraConfig(), FreezeConfig(last=1)):
        assert list(adapter_problems(Recipe(model=ModelConfig(adapter=settings)), inventory)) == []


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (FreezeConfig(names=("embed_tokens",)), {"model.embed_tokens.weight"}),
        (FreezeConfig(names=("lm_head",)), {"lm_head.weight"}),
        (
            FreezeConfig(names=("layers.1.mlp.up", "model.norm")),
            {"model.layers.1.mlp.up_proj.weight", "model.norm.weight"},
        ),
    ],
)
def test_freeze_trains_what_is_named(settings, wanted, tmp_path):
    inventory = take_inventory(tiny_model_folder(tmp_path / "apart", tie_word_embeddings=False))
    assert set(planned(inventory, settings).shapes) == wanted
    model = attach(load_base(tmp_path / "apart", ModelConfig(path="x")), settings)
    assert set(trainable(model)) == wanted


def test_freeze_adds_up_depth_and_names():
    model = attach(build("llama").requires_grad_(False), FreezeConfig(first=1, last=1, names=("embed",)))
    layers = {name.split(".")[2] for name in trainable(model) if ".layers." in name}
    assert layers == {"0", "2"}
    assert "model.embed_tokens.weight" in trainable(model)


def test_a_head_that_is_the_embedding_cannot_be_trained_by_its_own_name(tmp_path):
    recipe = Recipe(model=ModelConfig(adapter=FreezeConfig(names=("lm_head",))))
    (problem,) = adapter_problems(recipe, take_inventory(tiny_model_folder(tmp_path)))
    assert problem.code == "E316"


def test_prompts_cannot_be_merged():
    config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    with pytest.raises(ModelError, match="E314"):
        merge(peft.get_peft_model(build("llama"), config))


def test_values_that_are_not_finite_are_not_merged():
    for settings in (DoraConfig(rank=2), Ia3Config(), VeraConfig(rank=2)):
        model = disturbed(settings)
        next(iter(trainable(model).values())).data.view(-1)[0] = float("nan")
        with pytest.raises(ModelError, match="not finite"):
            merge(model)


def test_a_merge_in_bf16_is_formed_in_fp32():
    for settings in (DoraConfig(rank=4), OftConfig(block=16), Ia3Config(), VeraConfig(rank=4)):
        model = disturbed(settings, "llama")
        exact = merge(model)
        rounded = disturbed(settings, "llama")
        held = {name: parameter for name, parameter in rounded.named_parameters() if not parameter.requires_grad}
        for parameter in held.values():
            parameter.data = parameter.data.bfloat16()
        merged = dict(merge(rounded).named_parameters())
        for name, parameter in exact.named_parameters():
            if isinstance(exact.get_submodule(name.rpartition(".")[0]), nn.Linear):
                assert merged[name].dtype == torch.bfloat16
                limit = 2**-7 * parameter.abs().max()  # the base rounded once, the result once
                assert (merged[name].float() - parameter).abs().max() <= limit
