"""Encoders such as BERT: every answer a whole sequence of its own, read where the architecture's classifier reads."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, PreTrainedModel

from tunesmith.errors import Fix, ModelError, Where
from tunesmith.models.forest import Forest, Segment
from tunesmith.models.heads import AFTER_PADDING, positions
from tunesmith.types import Batch

RAGGED = "tunesmith_bidirectional"
# Types whose attention takes a registered implementation, and whose classifier reads the first state alone.
RAGGED_TYPES = ("bert", "electra", *AFTER_PADDING)


def register() -> None:
    """Make the attention known to transformers; calling it again changes nothing."""
    AttentionInterface.register(RAGGED, bidirectional_attention)


def choose_attention(model_type: str, wanted: str) -> str | None:
    """None leaves the choice to transformers, and the batch is padded."""
    return RAGGED if model_type in RAGGED_TYPES and wanted != "dense" else None


def bidirectional_attention(
    module: nn.Module,
    query: Float[Tensor, "1 H T E"],
    key: Float[Tensor, "1 H T E"],
    value: Float[Tensor, "1 H T E"],
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    forest: Forest | None = None,
    **_: object,
) -> tuple[Float[Tensor, "1 T H E"], None]:
    """Every token sees all of its own sequence, and no token of another one."""
    assert forest is not None, "ragged attention is called without the sequences of its batch"
    parts = [
        scaled_dot_product_attention(*(states[:, :, each.start : each.end] for states in (query, key, value)),
                                     dropout_p=dropout, scale=scaling)
        for each in forest.segments
    ]  # fmt: skip
    return torch.cat(parts, 2).transpose(1, 2), None


def encoder_values(model: PreTrainedModel, batch: Batch) -> Float[Tensor, "K C"]:
    """The values of the sequence that each scored token ends; equal to transformers' own, one sequence at a time.

    Raises ModelError E244 when one is longer than the encoder has positions.
    """
    rows = [batch.tokens[row] for row in whole_sequences(batch)]
    check_lengths(model, max(map(len, rows)), batch)
    if model.config._attn_implementation != RAGGED:
        return padded_values(model, rows)
    first_position = model.config.pad_token_id + 1 if model.config.model_type in AFTER_PADDING else 0
    ends = torch.tensor([len(row) for row in rows]).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    places = torch.cat([torch.arange(len(row)) for row in rows]) + first_position
    states = model.base_model(
        input_ids=torch.cat(rows)[None],
        position_ids=places.to(batch.tokens.device)[None],
        forest=Forest(tuple(Segment(start, end, ()) for start, end in zip(starts, ends, strict=True))),
    ).last_hidden_state[0]
    return classify(model, states[starts][:, None])


def whole_sequences(batch: Batch) -> list[Int[Tensor, " L"]]:
    """For each scored token, where the tokens from the root of its path to the end of its segment stand."""
    bounds = batch.segments.tolist()
    paths: list[Tensor] = []
    for start, end, parent in bounds:
        own = torch.arange(start, end, device=batch.tokens.device)
        paths.append(own if parent < 0 else torch.cat([paths[parent], own]))
    starts = batch.segments[:, 0].contiguous()
    found = torch.searchsorted(starts, batch.query, right=True) - 1
    return [paths[index] for index in found.tolist()]


def classify(model: PreTrainedModel, first_S1D: Float[Tensor, "S 1 D"]) -> Float[Tensor, "S C"]:
    """What the classifier of a ragged type makes of the first states; a pooler, where there is one, comes before it."""
    classifier = model.get_submodule("classifier")
    if isinstance(pooler := dict(model.base_model.named_children()).get("pooler"), nn.Module):
        return classifier(model.get_submodule("dropout")(pooler(first_S1D)))
    return classifier(first_S1D)


def padded_values(model: PreTrainedModel, rows: list[Tensor]) -> Float[Tensor, "S C"]:
    ids = pad_sequence(rows, batch_first=True, padding_value=model.config.pad_token_id or 0)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return model(input_ids=ids, attention_mask=mask).logits


def check_lengths(model: PreTrainedModel, longest: int, batch: Batch) -> None:
    room = positions(model.config)
    if longest > room:
        raise ModelError(
            "E244",
            f"a sequence has {longest:,} tokens; this encoder has positions for {room:,}",
            where=Where(field="data.max_length"),
            evidence=batch.records[:5],
            fixes=[Fix(f"data.max_length={room}", {"data.max_length": room})],
        )
