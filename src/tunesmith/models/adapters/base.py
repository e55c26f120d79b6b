"""What the methods that PEFT implements have in common: targets, heads, and PEFT's model around ours."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

import peft
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import Fix, ModelError, Where, nearest
from tunesmith.models.adapter_config import TargetedConfig
from tunesmith.models.heads import head_modules
from tunesmith.models.lora import FastLoraLinear

Files = peft.LoraConfig | peft.IA3Config | peft.VeraConfig | peft.OFTConfig  # folders that are read
LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Places:
    """What PEFT is told of the model: targets, layers, modules trained in full, and its task."""

    targets: list[str] | str
    layers: list[int] | None
    saved: list[str] | None
    task: str
    own_saved: tuple[str, ...]  # those that are there; PEFT adds the usual names of heads

    @classmethod
    def of(cls, model: PreTrainedModel, settings: TargetedConfig) -> Places:
        check_targets(model, settings.targets)
        targets, layers = chosen_modules(model, settings)
        head = [name.rsplit(".", 1)[-1] for name in head_modules(model)]
        saved = (*settings.modules_to_save, *head)
        return cls(targets, layers, list(saved) or None, "SEQ_CLS" if head else "CAUSAL_LM", saved if head else ())


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


def attach_config(model: PreTrainedModel, config: Files, places: Places, dtype: str = "float32") -> PeftModel:
    wrapped = wrap(model, config, dtype)
    if places.own_saved:
        config.modules_to_save = list(places.own_saved)
    return wrapped


def wrap(model: PreTrainedModel, config: Files, dtype: str = "float32") -> PeftModel:
    """PEFT's model around ours, with the fast linear in place of PEFT's own."""
    use_fast_linear(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT calls names that transformers is about to rename
        wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=dtype == "float32")
    assert isinstance(wrapped, PeftModel)
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
