"""What holds for every way to tune a model: over the registry, none left out."""

import peft
import pytest
import torch
from tests.tiny import tiny_model_folder
from tests.unit.models.architectures import build
from tests.unit.models.test_forest import KINDS, assert_equal_work
from tests.unit.models.test_forward import all_scored, sequences
from transformers import AutoModelForCausalLM

from tunesmith.data.packing import assemble
from tunesmith.errors import ModelError
from tunesmith.models.adalora_config import AdaloraConfig
from tunesmith.models.adapter_config import (
    AdapterConfig,
    BitfitConfig,
    DoraConfig,
    FreezeConfig,
    FullConfig,
    Ia3Config,
    LoraConfig,
    LoraFaConfig,
    NormsConfig,
    OloraConfig,
    PissaConfig,
    RsloraConfig,
    VeraConfig,
)
from tunesmith.models.adapters import METHODS, attach, load_adapter, merge, save_adapter, trainable
from tunesmith.models.bottleneck_config import BottleneckConfig
from tunesmith.models.changing_config import LisaConfig
from tunesmith.models.config import ModelConfig
from tunesmith.models.forward import score
from tunesmith.models.fused import fuse
from tunesmith.models.inventory import take_inventory
from tunesmith.models.inventory import trainable as planned
from tunesmith.models.layer.module import put_fast_layers
from tunesmith.models.loftq_config import LoftqConfig
from tunesmith.models.orthogonal_config import BoftConfig, OftConfig
from tunesmith.models.prompt_config import (
    LlamaAdapterConfig,
    PrefixConfig,
    PromptConfig,
    PTuningConfig,
    begins_as_base,
)
from tunesmith.models.reference import AdapterOff

EXAMPLES: dict[str, AdapterConfig] = {
    "lora": LoraConfig(rank=4, alpha=8),
    "rslora": RsloraConfig(rank=4, alpha=8),
    "dora": DoraConfig(rank=4, alpha=8),
    "pissa": PissaConfig(rank=4, alpha=8),
    "pissa sketched": PissaConfig(rank=3, alpha=6, iterations=8, targets=("v_proj", "down_proj")),
    "olora": OloraConfig(rank=4, alpha=8, rslora=True),
    "lora_fa": LoraFaConfig(rank=4, alpha=8),
    "adalora": AdaloraConfig(rank=4),
    "adalora of the last layer": AdaloraConfig(rank=3, start=2, alpha=5, targets=("v_proj", "down_proj"), last=1),
    "ia3": Ia3Config(),
    "ia3 of the last layer": Ia3Config(last=1),
    "vera": VeraConfig(rank=8),
    "oft": OftConfig(block=16),
    "oft by a series": OftConfig(block=8, neumann=True, targets=("q_proj", "v_proj"), last=2),
    "boft": BoftConfig(block=4, factors=3),
    "boft of one factor": BoftConfig(block=8, factors=1, targets=("q_proj", "v_proj"), last=2),
    "bottleneck": BottleneckConfig(),
    "bottleneck behind both": BottleneckConfig(kind="houlsby", activation="relu", reduction=8),
    "bottleneck beside": BottleneckConfig(kind="parallel", activation="silu", scale=4.0, last=2),
    "prompt": PromptConfig(tokens=5),
    "prompt begun at random": PromptConfig(tokens=9, init="random"),
    "p_tuning": PTuningConfig(tokens=4, width=24),
    "p_tuning by an lstm": PTuningConfig(tokens=6, encoder="lstm", width=12),
    "prefix": PrefixConfig(tokens=5),
    "prefix begun at random": PrefixConfig(tokens=3, init="random"),
    "prefix by a network": PrefixConfig(tokens=4, projection=True, width=24),
    "llama_adapter": LlamaAdapterConfig(tokens=5),
    "llama_adapter of the last layer": LlamaAdapterConfig(tokens=3, last=1),
    "full": FullConfig(),
    "lisa": LisaConfig(layers=1),
    "freeze": FreezeConfig(last=1, names=("embed",)),
    "bitfit": BitfitConfig(),
    "norms": NormsConfig(),
}
FOLDERS = {name: one for name, one in EXAMPLES.items() if one.kept == "adapter"}
OF_PEFT = {name: one for name, one in FOLDERS.items() if not isinstance(one, BottleneckConfig)}
BEGIN_AS_BASE = {name: one for name, one in EXAMPLES.items() if begins_as_base(one)}


def architecture_of(settings):
    """One with biases, unless the method is not for it."""
    return "llama" if isinstance(settings, LlamaAdapterConfig) else "qwen2"


def base_of(settings):
    return build(architecture_of(settings))


def every(examples):
    return pytest.mark.parametrize("settings", examples.values(), ids=examples)


def logprobs(model):
    return score(model, assemble([all_scored(row) for row in sequences()])).logprobs


def attached(settings, architecture=None):
    """As a run has it: with the written-out layers below the adapter."""
    return attach(
        put_fast_layers(fuse(build(architecture or architecture_of(settings)))).requires_grad_(False), settings
    )


@torch.no_grad()
def disturbed(settings, architecture=None, base=None):
    """A model whose trained parameters are no longer what they began as."""
    model = attached(settings, architecture) if base is None else attach(base.requires_grad_(False), settings)
    chance = torch.Generator().manual_seed(1)
    for parameter in trainable(model).values():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=chance))
    return model


def test_no_method_is_left_out():
    found = {type(one) for one in EXAMPLES.values()} | {LoftqConfig}  # which needs a base in few bits
    assert found == {method.config for method in METHODS}
    union = ModelConfig.model_json_schema()["properties"]["adapter"]["discriminator"]["mapping"]
    assert set(union) == {method.config.model_fields["method"].default for method in METHODS}
    assert all((method.files is None) == (method.config.kept == "model") for method in METHODS)


@every(BEGIN_AS_BASE)
def test_the_model_begins_as_the_base(settings):
    torch.testing.assert_close(logprobs(attached(settings)), logprobs(base_of(settings)), atol=1e-5, rtol=1e-5)


@every(EXAMPLES)
def test_a_step_moves_what_is_trained_and_nothing_else(settings):
    model = disturbed(settings)
    before = {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    trained = trainable(model)
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    logprobs(model.train()).square().mean().backward()
    optimizer.step()
    after = dict((*model.named_parameters(), *model.named_buffers()))
    still = [name for name in trained if torch.equal(before[name], after[name])]
    assert still == []
    assert [name for name in after if name not in trained and not torch.equal(before[name], after[name])] == []


@every(EXAMPLES)
def test_what_a_checkpoint_holds_is_enough(settings):
    """Everything that is not trained is the same in every run, whatever chance it begins with."""
    one = disturbed(settings)
    torch.manual_seed(12345)
    other = attached(settings)
    for name, parameter in trainable(other).items():
        parameter.data.copy_(one.get_parameter(name))
    torch.testing.assert_close(logprobs(other), logprobs(one), atol=0, rtol=0)


@every(OF_PEFT)
def test_folders_are_read_by_peft(settings, tmp_path):
    model = disturbed(settings)
    save_adapter(model, tmp_path, "base/model")
    theirs = peft.PeftModel.from_pretrained(base_of(settings), str(tmp_path))
    torch.testing.assert_close(logprobs(theirs), logprobs(model), atol=2e-5, rtol=2e-5)


@every(FOLDERS)
def test_folders_are_read_back(settings, tmp_path):
    model = disturbed(settings)
    want = logprobs(model)
    save_adapter(model, tmp_path, "base/model")
    ours = load_adapter(base_of(settings).requires_grad_(False), tmp_path, settings)
    torch.testing.assert_close(logprobs(ours), want, atol=1e-5, rtol=1e-5)
    assert not (tmp_path / "README.md").exists()
    assert (want - logprobs(base_of(settings))).abs().max() > 1e-3


@every(FOLDERS)
def test_switched_off_equals_the_base(settings):
    model = disturbed(settings, base=base_of(settings))
    want, batch = logprobs(model), assemble([all_scored(row) for row in sequences()])
    torch.testing.assert_close(AdapterOff(model).logprobs(batch), logprobs(base_of(settings)), atol=0, rtol=0)
    torch.testing.assert_close(logprobs(model), want, atol=0, rtol=0)


@every(FOLDERS)
def test_merged_equals_adapter(settings):
    model = disturbed(settings, base=base_of(settings))
    if not settings.merges:
        with pytest.raises(ModelError, match="E314"):
            merge(model)
        return
    want = logprobs(model)
    merged = merge(model)
    assert dict(merged.named_parameters()).keys() == dict(base_of(settings).named_parameters()).keys()
    torch.testing.assert_close(logprobs(merged), want, atol=2e-5, rtol=2e-5)


@every(EXAMPLES)
def test_the_plan_counts_what_is_trained(settings, tmp_path):
    folder = tiny_model_folder(tmp_path, architecture_of(settings))
    model = attach(AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False), settings)
    expected = sum(parameter.numel() for parameter in trainable(model).values())
    assert planned(take_inventory(folder), settings).total == expected
    if settings.kept == "adapter":
        save_adapter(model, tmp_path / "adapter", "base")
        if settings.word not in ("pissa", "olora"):  # their folders hold twice the rank
            assert planned(take_inventory(folder), settings, tmp_path / "adapter").total == expected


@every(EXAMPLES)
def test_answers_that_share_a_prompt_train_as_if_alone(settings):
    assert_equal_work(disturbed(settings), KINDS["pairs"])


@every(EXAMPLES)
def test_a_model_in_bf16_trains_what_is_meant(settings):
    model = attach(base_of(settings).requires_grad_(False).bfloat16(), settings)
    logprobs(model).mean().backward()
    assert all(parameter.grad is not None for parameter in trainable(model).values())
    if settings.kept == "adapter":
        assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float32}
