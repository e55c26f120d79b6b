"""Ways to tune a model: attach, count, save, load and merge, in PEFT's file format."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import peft
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import Fix, ModelError, Where, nearest
from tunesmith.models.config import Adapter, FreezeConfig, FullConfig, LoraConfig
from tunesmith.models.heads import head_modules
from tunesmith.models.lora import FastLoraLinear

LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks)\.(\d+)\.")

VOCABULARY_HEAD = ".lm_head.weight"


def attach(model: PreTrainedModel, adapter: Adapter) -> nn.Module:
    """The model with exactly the parameters trainable that the settings name."""
    if isinstance(adapter, LoraConfig):
        return attach_lora(model, adapter)
    if isinstance(adapter, FullConfig):
        return model.requires_grad_(True)
    return freeze(model, adapter)


def attach_lora(model: PreTrainedModel, settings: LoraConfig) -> PeftModel:
    check_targets(model, settings.targets)
    targets, layers = chosen_modules(model, settings)
    head = [name.rsplit(".", 1)[-1] for name in head_modules(model)]
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=settings.dropout,
        target_modules=targets,
        layers_to_transform=layers,
        use_rslora=settings.rslora,
        modules_to_save=[*settings.modules_to_save, *head] or None,
        task_type="SEQ_CLS" if head else "CAUSAL_LM",
    )
    wrapped = wrap(model, config, settings.dtype)
    if head:  # PEFT has added the usual names of heads; keep those that are there
        config.modules_to_save = [*settings.modules_to_save, *head]
    return wrapped


def chosen_modules(model: nn.Module, settings: LoraConfig) -> tuple[list[str] | str, list[int] | None]:
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


def wrap(model: PreTrainedModel, config: peft.LoraConfig, dtype: str = "float32") -> PeftModel:
    """PEFT's model around ours, with the fast linear in place of PEFT's own."""
    config._register_custom_module({nn.Linear: FastLoraLinear})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT calls names that transformers is about to rename
        wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=dtype == "float32")
    assert isinstance(wrapped, PeftModel)
    return wrapped


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


def freeze(model: PreTrainedModel, settings: FreezeConfig) -> PreTrainedModel:
    """Train the first and last layers asked for and the parameters named; everything else stays as it is."""
    head = tuple(f"{name}." for name in head_modules(model))
    depth = 1 + max(int(match[1]) for name, _ in model.named_parameters() if (match := LAYER.search(name)))
    for name, parameter in model.named_parameters():
        match = LAYER.search(name)
        layer = int(match[1]) if match else None
        by_depth = layer is not None and (layer < settings.first or layer >= depth - settings.last)
        named = any(part in name for part in settings.names)
        parameter.requires_grad_(by_depth or named or name.startswith(head or "\0"))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            "E091",
            f"freeze leaves nothing to train: first={settings.first} last={settings.last} names={list(settings.names)}",
            where=Where(field="model.adapter"),
            fixes=[Fix("train the last two layers", {"model.adapter.last": 2})],
        )
    return model


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_adapter(model: PeftModel, folder: Path, base: str) -> None:
    """Write PEFT's `adapter_config.json` and `adapter_model.safetensors`; `base` is recorded as the base model."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = base
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Attach a PEFT LoRA folder, trainable; every key of the file must find its place and the other way round."""
    config = read_adapter_config(folder)
    fresh = add_head(config, model)
    base, config.base_model_name_or_path = config.base_model_name_or_path, None
    wrapped = wrap(model, config)
    config.base_model_name_or_path = base
    tensors = read_adapter_tensors(folder)
    expected = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    if fresh:
        kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(VOCABULARY_HEAD)}
        tensors = kept | {name: tensor for name, tensor in expected.items() if fresh & set(name.split("."))}
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
            where=Where(file=str(folder / "adapter_model.safetensors")),
            evidence=[
                *(f"missing {name}" for name in missing[:7]),
                *(f"unknown {name}" for name in unexpected[:7]),
                *shapes[:6],
            ],
            fixes=[f"load it on the model it was trained from: {base}"],
        )
    peft.set_peft_model_state_dict(wrapped, tensors)
    return wrapped


def add_head(config: peft.LoraConfig, model: PreTrainedModel) -> set[str]:
    """Give a language model's adapter the model's new head to train; returns the head's modules, if it is new to it."""
    head = {name.rsplit(".", 1)[-1] for name in head_modules(model)}
    if not head or config.task_type == "SEQ_CLS":
        return set()
    config.task_type = "SEQ_CLS"
    config.modules_to_save = [*(name for name in config.modules_to_save or () if name != "lm_head"), *sorted(head)]
    return head


def read_adapter_config(folder: Path) -> peft.LoraConfig:
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            "E093", f"not a PEFT adapter folder: {error}", where=Where(file=str(folder / "adapter_config.json"))
        ) from error
    if not isinstance(config, peft.LoraConfig):
        raise ModelError(
            "E094",
            f"adapters of type {config.peft_type} are not supported",
            where=Where(file=str(folder)),
            fixes=["use a LoRA adapter"],
        )
    config.inference_mode = False
    return config


def read_adapter_tensors(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / "adapter_model.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            "E093",
            f"the adapter's weights cannot be read: {error}",
            where=Where(file=str(path)),
            fixes=["save the adapter as safetensors; pickle files are never read"],
        ) from error


def merge(model: PeftModel) -> PreTrainedModel:
    """The plain model with W + s BA formed in fp32 and cast once; the adapter wrapper is gone afterwards."""
    for module in model.modules():
        if isinstance(module, FastLoraLinear) and module.is_plain():
            merge_layer(module)
        elif isinstance(module, LoraLayer):
            module.merge(safe_merge=True)  # pyright: ignore[reportCallIssue]
    merged = model.base_model.unload()  # pyright: ignore[reportCallIssue]
    assert isinstance(merged, PreTrainedModel)
    return merged


def low_rank_product(layer: FastLoraLinear, name: str) -> torch.Tensor:
    """B A of one adapter in fp32."""
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    assert isinstance(a, torch.Tensor)
    assert isinstance(b, torch.Tensor)
    return b.float() @ a.float()


@torch.no_grad()
def merge_layer(layer: FastLoraLinear) -> None:
    weight = layer.get_base_layer().weight
    assert isinstance(weight, torch.Tensor)
    for name in layer.active_adapters:
        if name not in layer.lora_A:
            continue
        total = weight.float() + layer.scaling[name] * low_rank_product(layer, name)
        if not torch.isfinite(total).all():
            raise ModelError("E095", "the merged weights are not finite: the adapter holds NaN or Inf")
        weight.copy_(total.to(weight.dtype))
