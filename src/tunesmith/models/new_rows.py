"""Rows of embedding and head for tokens that a recipe adds: how they begin, and how they alone are trained."""

from __future__ import annotations

from pathlib import Path

import peft
import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn
from torch.nn.functional import embedding, linear
from transformers import PreTrainedModel

from tunesmith.errors import ModelError, Where
from tunesmith.vocabulary import Added, NewTokens, find_added

MARK = "new_rows"  # a buffer of the embedding that is saved nowhere: the ids that an adapter is to train


@torch.no_grad()
def add_rows(model: PreTrainedModel, folder: Path, new: NewTokens) -> None:
    """Give every new token a row; the vocabulary grows only where the model has too few.

    A row begins as the mean of those of the pieces that the token was spelt with, or with `begin` mean of all tokens.
    """
    if not new.tokens:
        return
    added = find_added(folder, new.tokens)
    table = model.get_input_embeddings()
    rows = len(table.get_parameter("weight"))
    if added.size > rows:
        model.resize_token_embeddings(added.size, mean_resizing=False)
        table = model.get_input_embeddings()
    head = model.get_output_embeddings()
    begin_rows(table.get_parameter("weight"), added, rows, new.begin)
    if head is not None and head.get_parameter("weight") is not table.get_parameter("weight"):
        begin_rows(head.get_parameter("weight"), added, rows, new.begin)
    table.register_buffer(MARK, torch.tensor(added.ids), persistent=False)


def begin_rows(weight: Tensor, added: Added, rows: int, begin: str) -> None:
    mean = weight[: min(rows, added.before)].float().mean(0)
    weight[rows:] = mean.to(weight.dtype)
    for id, pieces in zip(added.ids, added.pieces, strict=True):
        spelt = begin == "pieces" and len(pieces) > 0
        weight[id] = (weight[list(pieces)].float().mean(0) if spelt else mean).to(weight.dtype)


def trained_rows(model: PreTrainedModel) -> dict[str, list[int]] | None:
    """What PEFT is told to train: rows by module; where the head is the embedding, PEFT lets it follow."""
    table = model.get_input_embeddings()
    mark = dict(table.named_buffers(recurse=False)).get(MARK)
    if mark is None:
        return None
    head = model.get_output_embeddings()
    apart = head is not None and head.get_parameter("weight") is not table.get_parameter("weight")
    wanted = (table, head) if apart else (table,)
    names = [name for one in wanted for name, module in model.named_modules() if module is one]
    return {name.rpartition(".")[2]: mark.tolist() for name in names}


def check_rows(model: PreTrainedModel, config: peft.PeftConfig, folder: Path) -> None:
    """ModelError E339 when an adapter's folder has rows for tokens that the model does not have."""
    if not isinstance(config, peft.LoraConfig) or not config.trainable_token_indices:
        return
    told = config.trainable_token_indices
    highest = max(max(ids) for ids in told.values()) if isinstance(told, dict) else max(told)
    rows = len(model.get_input_embeddings().get_parameter("weight"))
    if highest >= rows:
        raise ModelError(
            "E339",
            f"the adapter trains the row of token {highest:,}, and the model has {rows:,} rows",
            where=Where(str(folder)),
            fixes=["name the tokens that it added in model.new_tokens", "merge it first: tunesmith merge FOLDER OUT"],
        )


def has_rows(config: peft.PeftConfig) -> bool:
    return isinstance(config, peft.LoraConfig) and bool(config.trainable_token_indices)


class FastTokens(TrainableTokensLayer):
    """PEFT's layer without a copy of the whole matrix, and without a gradient of its size.

    An embedding looks up the frozen rows and puts trained ones in place; a head puts their logits in place.
    """

    def forward_adapters(self, x: Tensor, active_adapters: list[str]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        names = [name for name in active_adapters if name in self.trainable_tokens_delta]
        if self.disable_adapters or self.merged or len(names) != 1:
            return super().forward_adapters(x, active_adapters)
        base, ids = self.get_base_layer(), torch.tensor(self.token_indices[names[0]], device=x.device)
        weight = base.weight
        assert isinstance(weight, Tensor)
        rows = self.trainable_tokens_delta[names[0]].to(weight.dtype)
        found = base(x)
        if isinstance(base, nn.Linear):
            return found.index_copy(-1, ids, linear(x, rows).to(found.dtype))
        scale = self._get_embed_scale()
        hits = x[..., None] == ids
        own = embedding(hits.int().argmax(-1), rows if scale is None else rows * scale.to(rows.dtype))
        return torch.where(hits.any(-1, keepdim=True), own.to(found.dtype), found)


def use_fast_rows(model: nn.Module) -> None:
    """Let every layer of PEFT's that trains rows compute by ours; parameters and names stay."""
    for module in model.modules():
        if isinstance(module, TrainableTokensWrapper):
            module.token_adapter.__class__ = FastTokens
