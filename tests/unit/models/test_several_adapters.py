"""Several adapters on one base: each predicts what it predicts alone, and the base what it was."""

import pytest
import torch
from tests.unit.models.architectures import build
from tests.unit.models.test_adapter_laws import FOLDERS, disturbed, every, logprobs

from tunesmith.errors import ModelError, UsageError
from tunesmith.models.adapter_config import TargetedConfig
from tunesmith.models.adapters import load_adapter, save_adapter, trainable
from tunesmith.models.adapters.several import attach_several
from tunesmith.models.config import (
    BottleneckConfig,
    DoraConfig,
    Ia3Config,
    LoraConfig,
    OftConfig,
    PissaConfig,
    PromptConfig,
    VeraConfig,
)
from tunesmith.models.fused import fuse
from tunesmith.models.layer.module import put_fast_layers


def base():
    """As a run has it, and frozen."""
    return put_fast_layers(fuse(build("qwen2"))).requires_grad_(False)


@torch.no_grad()
def saved(folder, settings, seed: int):
    model = disturbed(settings)
    torch.manual_seed(seed)
    for parameter in trainable(model).values():
        parameter.add_(0.1 * torch.randn_like(parameter))
    save_adapter(model, folder, "base")
    return folder


def alone(folder):
    return logprobs(load_adapter(base(), folder).requires_grad_(False).eval())


@every({name: one for name, one in FOLDERS.items() if isinstance(one, TargetedConfig)})
def test_each_predicts_what_it_predicts_alone(settings, tmp_path):
    folders = {f"./no. {seed}": saved(tmp_path / str(seed), settings, seed) for seed in (1, 2, 3)}
    several = attach_several(base(), folders)
    wanted = {name: alone(folder) for name, folder in folders.items()}
    whole = logprobs(base())  # of the written-out layers, which may round otherwise than those below an adapter
    torch.testing.assert_close(logprobs(several.model), wanted["./no. 1"], atol=0, rtol=0)
    for name in ("./no. 3", "./no. 1", "./no. 2", "./no. 3"):
        torch.testing.assert_close(logprobs(several.activate(name)), wanted[name], atol=0, rtol=0)
    torch.testing.assert_close(logprobs(several.activate(None)), whole, atol=0, rtol=1e-6)
    torch.testing.assert_close(logprobs(several.activate("./no. 2")), wanted["./no. 2"], atol=0, rtol=0)
    assert (wanted["./no. 1"] - wanted["./no. 2"]).abs().max() > 1e-3
    assert trainable(several.model) == {}


def test_kinds_of_lora_stand_beside_one_another(tmp_path):
    settings = {
        "lora": LoraConfig(rank=2, targets=("q_proj",)),
        "dora": DoraConfig(rank=4, alpha=8),
        "pissa": PissaConfig(rank=3, targets=("down_proj", "v_proj")),
        "with a head": LoraConfig(rank=2, last=1, modules_to_save=("lm_head",)),
    }
    folders = {name: saved(tmp_path / name, one, 1) for name, one in settings.items()}
    several = attach_several(base(), folders)
    for name in (*folders, *folders):
        torch.testing.assert_close(logprobs(several.activate(name)), alone(folders[name]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logprobs(several.activate(None)), logprobs(base()), atol=0, rtol=0)


def test_a_head_trained_beside_an_adapter_is_off_with_it(tmp_path):
    whole = LoraConfig(rank=2, targets=("q_proj",), modules_to_save=("lm_head",))
    model = load_adapter(base(), saved(tmp_path / "a", whole, 1)).eval()
    with model.disable_adapter():
        torch.testing.assert_close(logprobs(model), logprobs(base()), atol=0, rtol=0)
    assert (logprobs(model) - logprobs(base())).abs().max() > 1e-2


def test_no_number_of_the_base_is_copied(tmp_path):
    model = base()
    held = {parameter.data_ptr() for parameter in model.parameters()}
    several = attach_several(model, {name: saved(tmp_path / name, LoraConfig(rank=2), 1) for name in "ab"})
    several.activate("b")
    assert held <= {parameter.data_ptr() for parameter in several.model.parameters()}
    size = sum(parameter.numel() for name, parameter in several.model.named_parameters() if "lora_" not in name)
    assert size == sum(parameter.numel() for parameter in base().parameters())


def test_without_adapters_there_is_the_base():
    torch.testing.assert_close(logprobs(attach_several(base(), {}).activate(None)), logprobs(base()), atol=0, rtol=0)


PAIRS = {
    "kinds": (LoraConfig(rank=2), OftConfig(block=16)),
    "factors": (Ia3Config(), LoraConfig(rank=2)),
    "layers": (BottleneckConfig(), LoraConfig(rank=2)),
    "prompts": (PromptConfig(tokens=3), PromptConfig(tokens=3)),
    "seeds": (VeraConfig(rank=8), VeraConfig(rank=8, seed=5)),
}


@pytest.mark.parametrize("settings", PAIRS.values(), ids=PAIRS)
def test_those_that_cannot_stand_together_are_refused(settings, tmp_path):
    folders = {name: saved(tmp_path / name, one, 1) for name, one in zip("ab", settings, strict=True)}
    with pytest.raises(ModelError, match="E368"):
        attach_several(base(), folders)


def test_a_name_that_is_not_there_and_an_adapter_that_does_not_fit(tmp_path):
    several = attach_several(base(), {"polite": saved(tmp_path / "a", LoraConfig(rank=2), 1)})
    with pytest.raises(UsageError, match="did you mean polite"):
        several.activate("polit")
    other = saved(tmp_path / "b", LoraConfig(rank=3), 1)
    config = other / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 3', '"r": 2'))
    with pytest.raises(ModelError, match="E092"):
        attach_several(base(), {"a": tmp_path / "a", "b": other})
