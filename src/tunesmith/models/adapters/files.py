"""Adapter folders in PEFT's format, written as PEFT reads them and read strictly."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import peft
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import PreTrainedModel

from tunesmith.errors import Fix, ModelError, Where
from tunesmith.models.adapter_config import AdapterConfig
from tunesmith.models.adapter_settings import read_settings
from tunesmith.models.adapters.adalora import write_cut
from tunesmith.models.adapters.adaption import put_adaption
from tunesmith.models.adapters.base import ADAPTER_TENSORS, Files, Tuners, check_fits, wrap
from tunesmith.models.adapters.bottleneck import BottleneckModel
from tunesmith.models.adapters.bottleneck_files import base_of_bottleneck, load_bottleneck, save_bottleneck
from tunesmith.models.adapters.merging import not_mergeable
from tunesmith.models.adapters.prompts import PromptFiles, load_prompt, save_prompt
from tunesmith.models.adapters.registry import method_of
from tunesmith.models.adapters.spectral import as_plain, begins_with_weights, plain_tensors
from tunesmith.models.heads import head_modules
from tunesmith.models.kinds import kind_of_folder, kind_wanted
from tunesmith.models.new_rows import check_rows
from tunesmith.models.quantized.files import describe_base
from tunesmith.models.safety import ADAPTER_CONFIG
from tunesmith.models.tensors import read_tensors
from tunesmith.models.trained_on import check_base

VOCABULARY_HEAD = ".lm_head.weight"
OTHER_BASES = ("corda", "loftq", "lora_ga", "mica")  # beginnings of LoRA whose base is not the model as it is stored


Adapted = PeftModel | BottleneckModel  # a model with an adapter that can be saved beside it and switched off


def save_adapter(model: Adapted, folder: Path, base: str) -> None:
    """Write PEFT's `adapter_config.json` and `adapter_model.safetensors`; `base` is recorded as the base model.

    What began with a part of the weights is written as plain LoRA of twice the rank, against the original model.
    """
    if isinstance(model, BottleneckModel):
        save_bottleneck(model, folder, base)
        describe_base(model, folder)
        return
    for config in model.peft_config.values():
        config.base_model_name_or_path = base
    if model.active_peft_config.is_prompt_learning:
        save_prompt(model, folder)
        describe_base(model, folder)
        return
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    describe_base(model, folder)
    (name,) = model.peft_config
    if isinstance(model.peft_config[name], peft.AdaLoraConfig):
        write_cut(model, folder)
    if begins_with_weights(model.peft_config[name]):
        tensors = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
        tensors = {key: tensor.contiguous() for key, tensor in plain_tensors(model, tensors, name).items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        plain = as_plain(model.peft_config[name])
        plain.inference_mode = True
        plain.save_pretrained(str(folder))


def load_adapter(model: PreTrainedModel, folder: Path, settings: AdapterConfig | None = None) -> Adapted:
    """Attach an adapter folder, trainable; every key of the file must find its place and the other way round.

    `settings` is the method that goes on from it. Raises ModelError E313 when the folder holds another method's, E514
    when it was trained on another base.
    """
    found = kind_of_folder(folder)
    if model.name_or_path:
        check_base(folder, Path(model.name_or_path))
    if settings is not None and found is not None:
        check_continues(settings, found, folder)
    if found == "bottleneck":
        return load_bottleneck(model, folder)
    config = read_adapter_config(folder)
    if isinstance(config, PromptFiles):
        return load_prompt(model, folder, config)
    check_rows(model, config, folder)
    fresh = add_head(config, model)
    base, config.base_model_name_or_path = config.base_model_name_or_path, None
    is_gated = isinstance(config, peft.AdaptionPromptConfig)
    try:
        wrapped = put_adaption(model, config) if is_gated else wrap(model, config)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:  # what PEFT says of settings
        told = f"the adapter does not fit the model: {' '.join(str(error).split())[:300]}"
        raise ModelError("E092", told, where=Where(str(folder / ADAPTER_CONFIG))) from error
    config.base_model_name_or_path = base
    fill(wrapped, folder, str(base), fresh=fresh)
    if settings is not None and (ready := method_of(settings).goes_on) is not None:
        ready(wrapped)
    return wrapped


def fill(
    wrapped: PeftModel, folder: Path, base: str, name: str = "default", fresh: set[str] | frozenset[str] = frozenset()
) -> None:
    """Give the adapter `name` of a model the tensors of a folder, all but those of the `fresh` modules of a head.

    Raises ModelError E092 when a tensor has no place, or a place no tensor.
    """
    tensors = read_adapter_tensors(folder)
    expected = peft.get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False)
    if fresh:
        kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(VOCABULARY_HEAD)}
        tensors = kept | {name: tensor for name, tensor in expected.items() if fresh & set(name.split("."))}
    check_fits(tensors, expected, folder / ADAPTER_TENSORS, base)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Adapter .* LoRA tensor")  # layers of which AdaLoRA left nothing
        peft.set_peft_model_state_dict(wrapped, tensors, adapter_name=name)


def base_named_in(folder: Path) -> str | None:
    """The base model that an adapter folder says it was trained from."""
    if kind_of_folder(folder) == "bottleneck":
        return base_of_bottleneck(folder)
    return read_adapter_config(folder).base_model_name_or_path


def check_continues(settings: AdapterConfig, found: str, folder: Path) -> None:
    """ModelError E313 when the method cannot go on from an adapter of this kind."""
    if found == kind_wanted(settings):
        return
    raise ModelError(
        "E313",
        f"model.adapter.method is {settings.word}, and the folder holds an adapter of {found}",
        where=Where(str(folder), field="model.adapter.method"),
        fixes=[Fix(f"model.adapter.method={found}", {"model.adapter.method": found})],
    )


def add_head(config: Files, model: PreTrainedModel) -> set[str]:
    """Give a language model's adapter the model's new head to train; returns the head's modules, if it is new to it."""
    head = {name.rsplit(".", 1)[-1] for name in head_modules(model)}
    if not head or config.task_type == "SEQ_CLS" or not isinstance(config, Tuners):
        return set()
    config.task_type = "SEQ_CLS"
    config.modules_to_save = [*(name for name in config.modules_to_save or () if name != "lm_head"), *sorted(head)]
    return head


def read_adapter_config(folder: Path) -> Files:
    """The settings of a folder of PEFT's. Raises ModelError E314 for bottleneck adapters, E093 and E094 for others."""
    if kind_of_folder(folder) == "bottleneck":
        raise not_mergeable("bottleneck", folder)
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        raise ModelError("E093", f"not a PEFT adapter folder: it has no {ADAPTER_CONFIG}", where=Where(str(path)))
    settings = read_settings(folder)
    try:
        with TemporaryDirectory() as place:  # PEFT reads no settings but those of a folder
            (Path(place) / ADAPTER_CONFIG).write_text(json.dumps(settings), encoding="utf-8")
            config = peft.PeftConfig.from_pretrained(place)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError) as error:
        told = " ".join(str(error).split())[:300]
        raise ModelError("E093", f"not a PEFT adapter folder: {told}", where=Where(str(path))) from error
    if not isinstance(config, Files):
        raise not_supported(f"type {config.peft_type}", folder)
    begins = config.init_lora_weights if isinstance(config, peft.LoraConfig) else True
    if isinstance(begins, str) and begins.startswith(OTHER_BASES):
        raise not_supported(f"LoRA that began with {begins}", folder)
    config.inference_mode = False
    return config


def not_supported(kind: str, folder: Path) -> ModelError:
    return ModelError(
        "E094",
        f"adapters of {kind} are not supported",
        where=Where(file=str(folder)),
        fixes=["use an adapter of LoRA, DoRA, AdaLoRA, (IA)³, VeRA, OFT, BOFT, a prompt or prefix, or LLaMA-Adapter"],
    )


def read_adapter_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder / ADAPTER_TENSORS)
