"""Bottleneck adapters against their formula, in every architecture, and the folders that hold them."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import tiny_model_folder
from tests.unit.models.architectures import ARCHITECTURES, build
from tests.unit.models.test_adapter_laws import attached, disturbed, logprobs
from tests.unit.models.test_forward import gradients
from tests.unit.models.values import ENCODERS, classifier
from torch.nn.functional import gelu, relu, silu

from tunesmith.errors import ModelError
from tunesmith.export.adapters import Wish, convert_adapter
from tunesmith.models.adapter_folder import describe_adapter
from tunesmith.models.adapters import attach, base_named_in, load_adapter, save_adapter, trainable
from tunesmith.models.bottleneck_config import BottleneckConfig
from tunesmith.models.checkpointing import checkpoint_layers
from tunesmith.models.config import LoraConfig, ModelConfig
from tunesmith.models.headers import TensorInfo
from tunesmith.models.inventory import take_inventory
from tunesmith.models.inventory import trainable as planned
from tunesmith.models.layer.use import use_of
from tunesmith.models.load import load_base, load_model
from tunesmith.models.policy import everywhere
from tunesmith.models.trunk import layers_of
from tunesmith.planning.adapters import adapter_problems
from tunesmith.recipe import Recipe

KINDS = {
    "pfeiffer": BottleneckConfig(activation="relu", reduction=8, scale=0.5),
    "houlsby": BottleneckConfig(kind="houlsby"),
    "parallel": BottleneckConfig(kind="parallel", activation="silu", scale=4.0),
}
every_kind = pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)


def by_hand(settings, adapted, architecture):
    """The base with the formula of the papers put on the outputs of its attention and MLP modules."""
    base, weights = build(architecture), dict(adapted.named_parameters())
    function = {"relu": relu, "gelu": gelu, "silu": silu}[settings.activation]

    def added(path, read):
        down, up = (f"base_model.{path}.bottleneck_{end}" for end in ("down", "up"))
        low = function(read @ weights[f"{down}.weight"].T + weights[f"{down}.bias"])
        return settings.scale * (low @ weights[f"{up}.weight"].T + weights[f"{up}.bias"])

    def behind_attention(path):
        return lambda module, given, out: (out[0] + added(path, out[0]), *out[1:])

    def around_mlp(path):
        return lambda module, given, out: out + added(path, given[0] if settings.kind == "parallel" else out)

    for number, layer in enumerate(layers_of(base.get_decoder())):
        name = f"model.layers.{number}"
        layer.get_submodule("mlp").register_forward_hook(around_mlp(f"{name}.mlp.down_proj"))
        if settings.kind == "houlsby":
            layer.get_submodule("self_attn").register_forward_hook(behind_attention(f"{name}.self_attn.o_proj"))
    return base


@every_kind
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_model_is_the_formula_on_every_architecture(architecture, settings):
    model = disturbed(settings, architecture)
    want = logprobs(by_hand(settings, model, architecture))
    torch.testing.assert_close(logprobs(model), want, atol=2e-5, rtol=2e-5)
    assert (want - logprobs(build(architecture))).abs().max() > 1e-2


@every_kind
@pytest.mark.parametrize("policy", ["selective", "full"])
def test_layers_that_are_formed_again_give_the_same_gradients(settings, policy):
    def work(wanted):
        model = disturbed(settings, "gemma2").train()
        checkpoint_layers(model, everywhere(wanted))
        found = logprobs(model)
        found.square().sum().backward()
        return found.detach(), gradients(model)

    (want, wanted), (found, again) = work("off"), work(policy)
    assert torch.equal(want, found)
    assert [name for name in wanted if not torch.equal(wanted[name], again[name])] == []


@every_kind
@pytest.mark.parametrize("architecture", ENCODERS)
def test_encoders_with_a_head_train_adapters_and_head(architecture, settings, tmp_path):
    plain = classifier(architecture, tmp_path, 2)
    heads = [name for name, _ in plain.named_parameters() if "classifier" in name or "pooler" in name or "head" in name]
    base = load_base(tmp_path, ModelConfig(path="x", attention="dense"), outputs=2)
    ids = torch.arange(3, 20)[None]
    want = base.eval()(input_ids=ids).logits
    model = attach(base, settings).eval()
    torch.testing.assert_close(model(ids).logits, want, atol=0, rtol=0)
    model(ids).logits.sum().backward()
    trained = trainable(model)
    assert {name.removeprefix("base_model.") for name in trained if "bottleneck" not in name} == set(heads)
    assert all(parameter.grad is not None for parameter in trained.values())
    assert (
        sum(parameter.numel() for parameter in trained.values()) == planned(take_inventory(tmp_path, 2), settings).total
    )


def test_a_head_is_saved_with_the_adapters_and_a_language_models_folder_leaves_it_new(tmp_path):
    classifier("llama", tmp_path / "base", 3)
    folders = {"values": 3, "text": 0}
    for name, outputs in folders.items():
        base = load_base(tmp_path / "base", ModelConfig(path="x"), outputs=outputs)
        model = attach(base, BottleneckConfig())
        with torch.no_grad():
            for parameter in trainable(model).values():
                parameter.add_(0.1)
        save_adapter(model, tmp_path / name, "base")
    fresh = load_base(tmp_path / "base", ModelConfig(path="x"), outputs=3).score.weight.detach().clone()
    for name, grown in (("values", 0.1), ("text", 0.0)):
        base = load_base(tmp_path / "base", ModelConfig(path="x"), outputs=3)
        read = load_adapter(base, tmp_path / name, BottleneckConfig())
        torch.testing.assert_close(read.get_base_model().score.weight.detach(), fresh + grown)
        assert read.get_base_model().score.weight.requires_grad


def test_the_bottleneck_is_as_narrow_as_asked():
    model = attached(BottleneckConfig(reduction=16), "llama")
    shapes = {name.rpartition("bottleneck_")[2]: tuple(value.shape) for name, value in trainable(model).items()}
    assert shapes == {"down.weight": (4, 64), "down.bias": (4,), "up.weight": (64, 4), "up.bias": (64,)}
    assert BottleneckConfig(reduction=4096).width(64) == 1


def test_a_run_is_told_why_the_written_out_layer_is_not_used():
    (reason,) = use_of(attached(BottleneckConfig(), "llama")).obstacles
    assert reason == "mlp.down_proj is more than a linear layer with LoRA: it is a Bottleneck"


def test_peft_refuses_the_folder(tmp_path):
    save_adapter(disturbed(BottleneckConfig()), tmp_path, "base/model")
    with pytest.raises((KeyError, ValueError), match="BOTTLENECK"):
        peft.PeftModel.from_pretrained(build("qwen2"), str(tmp_path))
    assert base_named_in(tmp_path) == "base/model"


def test_the_folder_is_described_and_not_brought_into_another_form(tmp_path):
    save_adapter(disturbed(BottleneckConfig()), tmp_path / "a", "base/model")
    facts = describe_adapter(tmp_path / "a")
    assert (facts.method, facts.base, facts.layers, facts.targets) == ("bottleneck", "base/model", 3, ("down_proj",))
    with pytest.raises(ModelError, match="E314"):
        convert_adapter(str(tmp_path / "a"), tmp_path / "b", Wish(to="lora"))


CHANGES = {
    "another format": ("E351", lambda about, tensors: about.update(format=2)),
    "no base": ("E351", lambda about, tensors: about.pop("base_model_name_or_path")),
    "an unknown setting": ("E351", lambda about, tensors: about.update(non_linearity="swish")),
    "a setting out of range": ("E351", lambda about, tensors: about.update(activation="swish")),
    "a tensor too few": ("E092", lambda about, tensors: tensors.popitem()),
    "a tensor too many": ("E092", lambda about, tensors: tensors.update(more=torch.ones(1))),
    "another width": ("E092", lambda about, tensors: about.update(reduction=8)),
    "another place": ("E092", lambda about, tensors: about.update(kind="houlsby")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_is_read_strictly(change, tmp_path):
    code, spoil = CHANGES[change]
    save_adapter(disturbed(BottleneckConfig()), tmp_path, "base")
    path, file = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    about, tensors = json.loads(path.read_text()), load_file(file)
    spoil(about, tensors)
    path.write_text(json.dumps(about))
    save_file(tensors, file)
    with pytest.raises(ModelError, match=code):
        load_adapter(build("qwen2").requires_grad_(False), tmp_path, BottleneckConfig())


def test_a_folder_of_another_method_is_refused(tmp_path):
    save_adapter(disturbed(BottleneckConfig()), tmp_path / "ours", "base")
    save_adapter(disturbed(LoraConfig(rank=2)), tmp_path / "peft", "base")
    for settings, folder in ((LoraConfig(), "ours"), (BottleneckConfig(), "peft")):
        with pytest.raises(ModelError, match="E313"):
            load_adapter(build("qwen2"), tmp_path / folder, settings)


def test_a_run_goes_on_from_a_folder(tmp_path):
    folder, settings = tiny_model_folder(tmp_path / "model"), KINDS["parallel"]
    begun = load_model(folder, ModelConfig(path=str(folder), adapter=settings))
    with torch.no_grad():
        for parameter in trainable(begun).values():
            parameter.add_(0.05)
    save_adapter(begun, tmp_path / "adapter", str(folder))
    again = ModelConfig(path=str(folder), adapter=BottleneckConfig(), adapter_path=str(tmp_path / "adapter"))
    read = load_model(folder, again)
    assert trainable(read).keys() == trainable(begun).keys()
    torch.testing.assert_close(logprobs(read), logprobs(begun), atol=0, rtol=0)
    assert planned(take_inventory(folder), settings, tmp_path / "adapter").total == sum(
        parameter.numel() for parameter in trainable(read).values()
    )


def test_a_model_without_known_places_is_refused_before_and_after_loading(tmp_path):
    inventory = take_inventory(tiny_model_folder(tmp_path))
    renamed = {name.replace("down_proj", "fc2"): info for name, info in inventory.tensors.items()}
    inventory.tensors.clear()
    inventory.tensors.update(renamed)
    recipe = Recipe(model=ModelConfig(adapter=BottleneckConfig()))
    (problem,) = adapter_problems(recipe, inventory)
    assert problem.code == "E350"
    assert problem.fixes[0].set == {"model.adapter.method": "lora"}
    inventory.tensors["model.layers.0.mlp.down_proj.weight"] = TensorInfo("F32", (64, 128))
    assert list(adapter_problems(recipe, inventory)) == []
    model = build("llama")
    for layer in layers_of(model.get_decoder()):
        layer.mlp.fc2 = layer.mlp._modules.pop("down_proj")
    with pytest.raises(ModelError, match="E350"):
        attach(model, BottleneckConfig())
