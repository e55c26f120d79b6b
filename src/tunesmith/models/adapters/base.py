"""What the methods that PEFT implements have in common: targets, heads, and PEFT's model around ours."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import peft
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.errors import Fix, ModelError, Where, nearest
from tunesmith.models.adapter_config import TargetedConfig
from tunesmith.models.butterfly import put_butterflies
from tunesmith.models.heads import head_modules
from tunesmith.models.lora import FastLoraLinear
from tunesmith.models.new_rows import trained_rows, use_fast_rows
from tunesmith.models.singular import use_singular_linear

Files = (  # folders that are read
    peft.LoraConfig  # AdaLoRA's is one of them
    | peft.IA3Config
    | peft.VeraConfig
    | peft.OFTConfig
    | peft.BOFTConfig
    | peft.PromptTuningConfig
    | peft.PromptEncoderConfig
    | peft.PrefixTuningConfig
    | peft.AdaptionPromptConfig
)
Tuners = (
    peft.LoraConfig | peft.IA3Config | peft.VeraConfig | peft.OFTConfig | peft.BOFTConfig
)  # those that change linear layers
ADAPTER_TENSORS = "adapter_model.safetensors"
LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Places:
    """What PEFT is told of the model: targets, layers, modules trained in full, and its task."""

    targets: list[str] | str
    layers: list[int] | None
    saved: list[str] | None
    task: str
    own_saved: tuple[str, ...]  # those that are there; PEFT adds the usual names of heads
    rows: dict[str, list[int]] | None = None  # of tokens that are new

    @classmethod
    def of(cls, model: PreTrainedModel, settings: TargetedConfig) -> Places:
        check_targets(model, settings.targets)
        targets, layers = chosen_modules(model, settings)
        head = [name.rsplit(".", 1)[-1] for name in head_modules(model)]
        saved = (*settings.modules_to_save, *head)
        task, own = ("SEQ_CLS", saved) if head else ("CAUSAL_LM", ())
        return cls(targets, layers, list(saved) or None, task, own, None if head else trained_rows(model))


def chosen_modules(model: nn.Module, settings: TargetedConfig) -> tuple[list[str] | str, list[int] | None]:
    """What PEFT is to adapt, and in which layers; it chooses layers only among modules that are named."""
    if not settings.last:
        return "all-linear" if settings.targets == ("all",) else list(settings.targets), None
    inside = {name: int(match[1]) for name, _ in model.named_modules() if (match := LAYER.search(name))}
    depth = 1 + max(inside.values())
    layers = list(range(max(0, depth - settings.last), depth))
    if settings.targets != ("all",):
        return list(settings.targets), layers
    linears = [name for name in inside if isinstance(model.get_submodule(name), nn.Linear)]
    return sorted({name.rpartition(".")[2] for name in linears}), layers


def attach_config(model: PreTrainedModel, config: Tuners, places: Places, dtype: str = "float32") -> PeftModel:
    wrapped = wrap(model, config, dtype)
    if places.own_saved:
        config.modules_to_save = list(places.own_saved)
    return wrapped


def wrap(model: PreTrainedModel, config: Files, dtype: str = "float32") -> PeftModel:
    """PEFT's model around ours, with our linear layers in place of PEFT's own."""
    use_fast_linear(config)
    if isinstance(config, peft.BOFTConfig):
        put_butterflies(model, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT calls names that transformers is about to rename
        warnings.filterwarnings("ignore", "You are trying to modify a model with PEFT")  # BOFT's layers are there
        warnings.filterwarnings("ignore", "The following rank_pattern keys")  # AdaLoRA's are no patterns of modules
        wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=dtype == "float32")
    assert isinstance(wrapped, PeftModel)
    if isinstance(config, peft.AdaLoraConfig):
        use_singular_linear(wrapped, config)
    use_fast_rows(wrapped)
    return wrapped


def use_fast_linear(config: Files) -> None:
    if isinstance(config, peft.LoraConfig):
        config._register_custom_module({nn.Linear: FastLoraLinear})


def check_targets(model: nn.Module, targets: tuple[str, ...]) -> None:
    linears = sorted(
        {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    )
    for target in targets:
        if target == "all" or any(name == target or name.endswith(f".{target}") for name, _ in model.named_modules()):
            continue
        near = nearest(target, linears)
        raise ModelError(
            "E090",
            f"no module of the model is called {target!r}",
            where=Where(field="model.adapter.targets"),
            evidence=[f"linear layers: {', '.join(linears)}"],
            fixes=[Fix(f"model.adapter.targets=[{near or 'all'}]", {"model.adapter.targets": [near or "all"]})],
        )


def check_fits(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, base: str | None) -> None:
    """ModelError E092 unless every tensor of the file has its place in the model and the other way round."""
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    shapes = [
        f"{name}: file {tuple(tensors[name].shape)}, model {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]
    if missing or unexpected or shapes:
        raise ModelError(
            "E092",
            f"the adapter does not fit the model: {len(missing)} tensors missing, {len(unexpected)} unknown, "
            f"{len(shapes)} of another shape",
            where=Where(file=str(path)),
            evidence=[
                *(f"missing {name}" for name in missing[:7]),
                *(f"unknown {name}" for name in unexpected[:7]),
                *shapes[:6],
            ],
            fixes=[f"load it on the model it was trained from: {base}"],
        )
