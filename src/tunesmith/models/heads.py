"""Reward and classification heads: which models carry one, how it begins, what its outputs mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from tunesmith.errors import Fix, ModelError, Where
from tunesmith.models.architecture import build_config
from tunesmith.models.headers import TensorInfo
from tunesmith.models.padding import free_pad

WRAPPERS = ("base_model", "model", "modules_to_save", "default")  # parts that PEFT adds to names
AFTER_PADDING = ("roberta", "xlm-roberta")  # types whose positions begin after the padding token's id
# Types whose classifiers are neither those of encoders that were language models nor a layer called score at the end.
OTHER_HEADS = ("canine", "ctrl", "layoutlmv2", "layoutlmv3", "lilt", "markuplm", "modernbert-decoder", "xlnet")
CLASSIFIER = "ForSequenceClassification"
SEED = 20_231_017  # of every new head: the same one in every run and on every rank


def has_head(model: PreTrainedModel) -> bool:
    """Whether the model gives values, not log-probabilities."""
    return type(model).__name__.endswith(CLASSIFIER)


def positions(config: PreTrainedConfig) -> int:
    """How many tokens the model reads at most; some encoders lose places to the padding token's id."""
    room = int(config.to_dict().get("max_position_embeddings") or 2**20)
    return room - (config.pad_token_id + 1) if config.model_type in AFTER_PADDING else room


def is_classifier(config: PreTrainedConfig) -> bool:
    """Whether the config is one of a sequence classifier; `prepare_config` makes it so."""
    return str((config.architectures or [""])[0]).endswith(CLASSIFIER)


def is_encoder(config: PreTrainedConfig) -> bool:
    """Whether every token sees the whole sequence, as in BERT."""
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.is_encoder_decoder


def stored_outputs(config: dict) -> int:
    """How many values the model of a config.json gives; 0 for anything but a sequence classifier."""
    names = config.get("architectures") or [""]
    if not str(names[0]).endswith(CLASSIFIER):
        return 0
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, dict) else int(config.get("num_labels", 2))


def outputs_in(tensors: Mapping[str, TensorInfo]) -> int:
    """How many values the head among these tensors gives; 0 without one. The names may be those of an adapter."""
    for name, info in tensors.items():
        parts = [part for part in name.split(".") if part not in WRAPPERS]
        if parts in (["score", "weight"], ["classifier", "weight"], ["classifier", "out_proj", "weight"]):
            return info.shape[0]
    return 0


def head_modules(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the modules between the states and the values; they are always trained, and saved with an adapter.

    The pooler of an encoder is one of them: language modelling leaves it untrained, and many checkpoints lack it.
    """
    if not has_head(model):
        return ()
    prefix = model.base_model_prefix
    names = [
        name for name, module in model.named_children() if name != prefix and any(True for _ in module.parameters())
    ]
    pooler = model.base_model.pooler if hasattr(model.base_model, "pooler") else None
    return (*names, f"{prefix}.pooler") if isinstance(pooler, nn.Module) else tuple(names)


def backbone_parts(model: PreTrainedModel) -> set[str]:
    """First parts of the names of tensors below the head, in checkpoints with a head and without one."""
    return {model.base_model_prefix, *(name for name, _ in model.base_model.named_children())}


def describe_classifier(
    folder: Path, config: dict, outputs: int, stored: dict[str, TensorInfo]
) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo], dict[str, Any]]:
    """All tensors that a model with a head is made of, those of its fp32 head alone, and sizes by their usual names.

    `config` is that of the folder and `stored` its tensors; no memory is taken for weights.
    """
    settings = build_config(config, folder)
    prepare_config(settings, folder, outputs)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(settings)
    modules, backbone = tuple(f"{name}." for name in head_modules(model)), backbone_parts(model)
    shapes = {name: tuple(each.shape) for name, each in model.named_parameters() if name.startswith(modules)}
    head = {name: TensorInfo("F32", shape) for name, shape in shapes.items()}
    replaced = {*head, *(name.removeprefix(f"{model.base_model_prefix}.") for name in head)}
    kept = {name: info for name, info in stored.items() if name.partition(".")[0] in backbone and name not in replaced}
    sizes = {name: config[other] for name, other in settings.attribute_map.items() if other in config}
    return {**kept, **head}, head, sizes


def prepare_config(config: PreTrainedConfig, folder: Path, outputs: int) -> None:
    """Make `config` that of a sequence classifier.

    Raises ModelError E240 for an architecture that transformers cannot classify with, E241 when the folder is a
    classifier of another number of values.
    """
    names: Mapping[str, str] = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    if config.model_type not in names or config.is_encoder_decoder or config.model_type in OTHER_HEADS:
        known = ", ".join(sorted(names.keys() - set(OTHER_HEADS)))
        raise ModelError(
            "E240",
            f"models of the type {config.model_type} cannot carry a reward or classification head",
            where=Where(file=str(folder / "config.json"), field="model_type"),
            evidence=[f"types that can: {known}"],
            fixes=["use a model of one of these types"],
        )
    stored = stored_outputs(config.to_dict())
    if stored not in (0, outputs):
        raise ModelError(
            "E241",
            f"the head of this model gives {stored} values, the objective reads {outputs}",
            where=Where(file=str(folder / "config.json"), field="id2label"),
            fixes=["start from the language model or encoder without the head", "give data with the same classes"],
        )
    if not stored:
        config.num_labels = outputs
        config.architectures = [names[config.model_type]]
    if not is_encoder(config) and (folder / "tokenizer.json").is_file():
        pad = free_pad(folder)
        config.pad_token_id = None if pad is None or pad.id >= config.vocab_size else pad.id


def refuse_head(config: PreTrainedConfig, folder: Path) -> None:
    """ModelError E242 for a sequence classifier, E243 for an encoder, where a language model is wanted."""
    if stored_outputs(config.to_dict()):
        raise writes_no_text(str(folder))
    if is_encoder(config):
        raise ModelError(
            "E243",
            f"this is an encoder ({config.model_type}): its tokens see what follows, so it cannot predict the next one",
            where=Where(file=str(folder / "config.json"), field="model_type"),
            fixes=["train it as a reward model or a classifier", "use a causal language model"],
        )


def writes_no_text(name: str) -> ModelError:
    return ModelError(
        "E242",
        "this is a reward model or classifier: it scores texts and cannot write them",
        where=Where(file=name),
        fixes=[Fix("score texts with it", command=f"tunesmith score {name} --data FILE"), "use a language model"],
    )


@torch.no_grad()
def set_up_head(model: PreTrainedModel, missing: Iterable[str], folder: Path) -> None:
    """Hold the head in fp32, as it is stored, or with first values where the checkpoint has none.

    A new matrix is N(0, 1/sqrt(d + 1)), d its inputs, and a new bias 0 (arXiv:2009.01325 appendix B).
    """
    modules = {name: model.get_submodule(name) for name in head_modules(model)}
    for module in modules.values():
        module.float()
        module.register_forward_pre_hook(in_fp32)
    places = dict(model.named_parameters())
    for name, tensor in stored_tensors(folder, [n for n in places if n.startswith(tuple(modules))]).items():
        places[name].copy_(tensor)
    generator = torch.Generator().manual_seed(SEED)
    for name in sorted(missing):
        parameter = places[name]
        if parameter.ndim >= 2:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[-1] + 1))
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def in_fp32(_: nn.Module, arguments: tuple) -> tuple:
    """States in the head's type, whatever the type of the layers below."""
    return tuple(each.float() if isinstance(each, torch.Tensor) else each for each in arguments)


def stored_tensors(folder: Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Tensors of the folder in the type they are stored in; names that it lacks are left out."""
    wanted = set(names)
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in wanted & set(file.keys())}
    return found
