"""A model becomes a GGUF file, tensor by tensor; a LoRA adapter becomes a small one beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFType, GGUFWriter
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from tunesmith.errors import Fix, ModelError, Where
from tunesmith.export.gguf.families import Family, family_of, write_settings
from tunesmith.export.gguf.tensors import gguf_name, interleaved, layout_of, names_of, tensors_of
from tunesmith.export.gguf.turning import head_width
from tunesmith.export.gguf.types import FileType, byte_count, stored, stored_type
from tunesmith.export.gguf.vocabulary import Vocabulary, write_vocabulary
from tunesmith.models.adapter_folder import PREFIX
from tunesmith.models.adapters.updates import LowRankAdapter, Update


@dataclass(frozen=True, slots=True)
class About:
    """What the file says of itself."""

    name: str
    base: str
    context: int


def write_gguf(path: Path, model: PreTrainedModel, kind: FileType, words: Vocabulary, about: About) -> None:
    """Write the whole file; one tensor at a time is converted."""
    family, config = family_of(model.config), model.config.to_dict()
    writer = GGUFWriter(path, family.architecture)
    writer.add_type(GGUFType.MODEL)
    writer.add_name(about.name)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, about.base)
    writer.add_vocab_size(len(words.tokens))
    write_settings(writer, config, family, about.context)
    writer.add_file_type(kind.mark)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    write_vocabulary(writer, words)
    layout = layout_of(model)
    planned: list[tuple[Tensor, GGMLQuantizationType]] = []
    for name, tensor in tensors_of(model, family):
        shape = tuple(tensor.shape)
        how = stored_type(name, shape, kind, layout)
        writer.add_tensor_info(name, list(shape), np.dtype(np.float32), byte_count(shape, how), raw_dtype=how)
        planned.append((tensor, how))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, how in planned:
        writer.write_tensor_data(np.ascontiguousarray(stored(tensor, how)))
    writer.close()


def write_lora(path: Path, adapter: LowRankAdapter, config: PreTrainedConfig, about: About) -> None:
    """Write plain LoRA; ModelError E436 for one on embeddings, which the format cannot hold.

    The scale is that of the file's one alpha where all layers agree on it, and else part of B.
    """
    family = family_of(config)
    if adapter.embeddings or any("lm_head" in name for name in adapter.updates):
        raise ModelError(
            "E436",
            "the adapter changes the embedding or the head, which no GGUF adapter can",
            where=Where(str(adapter.folder)),
            fixes=[Fix("write the merged model", command=f"tunesmith export {adapter.folder} OUT --to gguf")],
        )
    alphas = {round(update.scale * len(update.a), 6) for update in adapter.updates.values()}
    alpha = alphas.pop() if len(alphas) == 1 else None
    writer = GGUFWriter(path, family.architecture)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_name(about.name)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 1.0 if alpha is None else alpha)
    for name, side in sides_of(adapter.updates, config, family, fold=alpha is None).items():
        writer.add_tensor(name, side.contiguous().float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def sides_of(
    updates: Mapping[str, Update], config: PreTrainedConfig, family: Family, *, fold: bool
) -> dict[str, torch.Tensor]:
    names = names_of(family, config.num_hidden_layers)
    found: dict[str, torch.Tensor] = {}
    for module, update in updates.items():
        name = gguf_name(names, f"{module.removeprefix(PREFIX)}.weight")
        b = update.b * (update.scale * len(update.a)) if fold else update.b
        if family.permuted and module.endswith(("q_proj", "k_proj")):
            b = interleaved(b, head_width(config.to_dict()))
        found[f"{name}.lora_a"], found[f"{name}.lora_b"] = update.a, b
    return found
