"""The weights of a model under the names, and in the order of rows, that GGUF gives them."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, TensorNameMap, get_tensor_name_map
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.errors import ModelError, Where
from tunesmith.export.gguf.families import KEEP, Family, family_of
from tunesmith.export.gguf.mixtures import Layout
from tunesmith.export.gguf.turning import head_width, rope_tensors
from tunesmith.export.gguf.types import FileType, rounded, stored_type


def architecture(family: Family) -> MODEL_ARCH:
    return next(key for key, name in MODEL_ARCH_NAMES.items() if name == family.architecture)


def names_of(family: Family, layers: int) -> TensorNameMap:
    return get_tensor_name_map(architecture(family), layers)


def gguf_name(names: TensorNameMap, name: str) -> str:
    """ModelError E432 for a tensor that has no place."""
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        message = f"the tensor {name} has no name in GGUF"
        raise ModelError("E432", message, where=Where("config.json", field="model_type"), fixes=[KEEP])
    return found


def tensors_of(model: PreTrainedModel, family: Family) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that is stored; a head that is the embedding is left out."""
    config = model.config.to_dict()
    names = names_of(family, config["num_hidden_layers"])
    for name, tensor in rope_tensors(config).items():
        yield name, tensor
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and is_tied(model):
            continue
        yield gguf_name(names, name), arranged(name, tensor, config, family)


@torch.no_grad()
def as_stored(model: PreTrainedModel, kind: FileType) -> PreTrainedModel:
    """A copy whose weights are rounded as the type rounds them: what a file of it has to answer."""
    family, layout = family_of(model.config), layout_of(model)
    names = names_of(family, layout.layers)
    copy = deepcopy(model)
    for name, parameter in copy.named_parameters():
        how = stored_type(gguf_name(names, name), tuple(parameter.shape), kind, layout)
        parameter.copy_(rounded(parameter, how))
    return copy


def layout_of(model: PreTrainedModel) -> Layout:
    config = model.config
    return Layout(config.num_hidden_layers, config.num_attention_heads // config.num_key_value_heads, is_tied(model))


def is_tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is None or head.weight is model.get_input_embeddings().weight


def arranged(name: str, tensor: Tensor, config: dict[str, int], family: Family) -> Tensor:
    """A tensor with the rows in the order of the format, norm weights with the 1 that the model adds."""
    if family.shift and name.endswith("norm.weight"):
        return tensor + family.shift
    if family.permuted and name.rpartition(".")[0].endswith(("q_proj", "k_proj")):
        return interleaved(tensor, head_width(config))
    return tensor


def interleaved(rows: Tensor, width: int) -> Tensor:
    """Rows of each head in the order 0, w/2, 1, w/2 + 1, ...: halves that turn together become neighbours."""
    split = rows.unflatten(0, (-1, 2, width // 2))
    return split.transpose(1, 2).reshape(rows.shape)
