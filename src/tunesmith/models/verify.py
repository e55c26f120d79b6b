"""Proof at start-up that packed scores equal separate ones on this model and device."""

from __future__ import annotations

import torch
from torch import nn

from tunesmith.errors import Fix, ModelError
from tunesmith.models.encoder import whole_sequences
from tunesmith.models.forward import base_model, read_only
from tunesmith.models.heads import has_head
from tunesmith.types import Batch, Reads

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}  # largest difference of a log-probability


@torch.no_grad()
def verify_scores(model: nn.Module, batch: Batch) -> float:
    """The largest difference between ragged scores (or values) and transformers' own forward, one sequence at a time.

    ModelError E096 beyond the tolerance of the model's type. For log-probabilities the batch must be flat; values,
    whose tolerance is a share of the largest one, may be those of answers that share a prompt.
    """
    base = base_model(model)
    reads: Reads = "values" if has_head(base) else "logprobs"
    found = read_only(model, batch, reads)
    ragged = found.logprobs if found.values is None else found.values
    implementation = base.config._attn_implementation or "eager"
    base.set_attn_implementation("sdpa" if base._supports_sdpa else "eager")
    training = model.training
    model.eval()
    try:
        separate = separate_values(model, batch) if reads == "values" else separate_logprobs(model, batch)
    finally:
        model.train(training)
        base.set_attn_implementation(implementation)
    difference = (ragged - separate).abs().max().item() if len(ragged) else 0.0
    scale = max(1.0, separate.abs().max().item()) if reads == "values" and len(ragged) else 1.0
    limit = scale * TOLERANCE.get(next(base.parameters()).dtype, 0.15)
    if not difference <= limit:
        raise ModelError(
            "E096",
            f"packed scores differ from separate ones by {difference:.3g} on this architecture "
            f"({base.config.model_type}); at most {limit:g} is rounding",
            fixes=[
                Fix("model.attention=dense", {"model.attention": "dense"}, effect="slower, one mask over the batch")
            ],
        )
    return difference


def separate_values(model: nn.Module, batch: Batch) -> torch.Tensor:
    rows = [batch.tokens[row] for row in whole_sequences(batch)]
    return torch.cat([model(input_ids=row[None]).logits.float() for row in rows])


def separate_logprobs(model: nn.Module, batch: Batch) -> torch.Tensor:
    parts = torch.empty_like(batch.weight)
    for start, end, _ in batch.segments.tolist():
        logits = model(input_ids=batch.tokens[None, start:end], use_cache=False).logits[0].float()
        inside = (batch.query >= start) & (batch.query < end)
        logits = logits[len(logits) - (end - start) :]  # those of a learned prompt stand before
        rows = logits.log_softmax(-1)[batch.query[inside] - start]
        parts[inside] = rows.gather(1, batch.target[inside, None])[:, 0]
    return parts
