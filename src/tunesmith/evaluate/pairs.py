"""What a language model thinks of pairs: which answer it finds likelier, by how much, and against its reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tunesmith.data.chat import encode_record
from tunesmith.data.config import DataConfig
from tunesmith.data.entries import Entry
from tunesmith.data.packing import batch_of, pack
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.evaluate.metrics import Score, mean, proportion
from tunesmith.evaluate.rewards import Comparison, group, parts_of
from tunesmith.models.forward import base_model, read_only
from tunesmith.models.reference import Reference
from tunesmith.types import Batch, Example, Task

MICROBATCH_TOKENS = 4096
PAIRS = Task("pair")


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Summed log-probabilities of the chosen and the rejected answer of each pair, and their tokens.

    `reference` are the same sums under the reference, when there is one.
    """

    examples: list[Example]
    sums: Float[np.ndarray, "P 2"]
    lengths: Float[np.ndarray, "P 2"]
    reference: Float[np.ndarray, "P 2"] | None

    def compared(self, figures: Float[np.ndarray, "P 2"]) -> list[Comparison]:
        """The pairs with a figure for each answer."""
        return [
            Comparison(
                float(figure[0]),
                float(figure[1]),
                int(length[0]),
                int(length[1]),
                source=Path(example.file).name,
                record=f"{example.file}:{example.line}",
            )
            for example, figure, length in zip(self.examples, figures, self.lengths, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class PairsMeasured:
    """Scores of a set of pairs, groups of them, and a row per pair."""

    scores: dict[str, Score]
    detail: dict[str, Any]
    rows: list[dict[str, Any]]


def measure_pairs(
    model: nn.Module,
    tokenizer: Tokenizer,
    entries: Iterable[Entry],
    settings: DataConfig,
    left_out: Counter[str],
    *,
    reference: Reference | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> PairsMeasured | None:
    """Accuracy and margin of summed and of per-token log-probabilities, and of rewards where there is a reference.

    A reward is the log-ratio to the reference, without the factor beta, which changes neither an accuracy nor a sign.
    None when no pair can be measured. Pairs are compared whole: what is too long is left out, never split.
    """
    whole = settings.model_copy(update={"overlong": "drop"}) if settings.overlong == "split" else settings
    examples: list[Example] = []
    for entry in entries:
        outcome = encode_record(entry, tokenizer, whole, PAIRS)
        if outcome.dropped is not None:
            left_out[outcome.dropped] += 1
        examples += outcome.examples
    return told(likelihoods(model, examples, reference, on_progress)) if examples else None


def likelihoods(
    model: nn.Module,
    examples: Sequence[Example],
    reference: Reference | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Likelihoods:
    """The sums of every pair, in order; batched by tokens."""
    sums, lengths, others = (np.zeros((len(examples), 2)) for _ in range(3))
    device, done = base_model(model).device, 0
    for places in pack([len(example) for example in examples], MICROBATCH_TOKENS):
        batch = batch_of([examples[index] for index in places]).to(device)
        sums[places] = per_pair(read_only(model, batch, "logprobs").logprobs, batch)
        lengths[places] = per_pair(torch.ones_like(batch.weight), batch)
        if reference is not None:
            others[places] = per_pair(reference.logprobs(batch), batch)
        done += len(places)
        if on_progress is not None:
            on_progress(done, len(examples))
    return Likelihoods(list(examples), sums, lengths, None if reference is None else others)


def per_pair(values: Float[Tensor, " K"], batch: Batch) -> Float[np.ndarray, "P 2"]:
    """Sums of a figure of scored tokens over chosen and rejected answers."""
    sums = torch.zeros(len(batch.group), dtype=torch.float64)
    return sums.index_add(0, batch.sequence.cpu(), values.double().cpu()).view(-1, 2).numpy()


def told(found: Likelihoods) -> PairsMeasured:
    summed = found.compared(found.sums)
    averaged = found.compared(found.sums / np.maximum(found.lengths, 1))
    scores = {**worth(summed, ""), **worth(averaged, "_per_token")}
    detail: dict[str, Any] = {"breakdown": breakdown(summed)}
    rows = [
        {"record": each.record, "chosen": each.chosen, "rejected": each.rejected, "margin": each.margin}
        | {"chosen_tokens": each.chosen_length, "rejected_tokens": each.rejected_length}
        for each in summed
    ]
    if found.reference is not None:
        rewards = found.compared(found.sums - found.reference)
        scores = {**worth(rewards, "", "reward_"), **scores}
        detail["reward_breakdown"] = breakdown(rewards)
        for row, each in zip(rows, rewards, strict=True):
            row |= {"reward_chosen": each.chosen, "reward_rejected": each.rejected, "reward_margin": each.margin}
    return PairsMeasured(scores, detail, rows)


def worth(pairs: Sequence[Comparison], ending: str, beginning: str = "") -> dict[str, Score]:
    """How often the chosen answer has the higher figure, ties one half, and by how much on average."""
    return {
        f"{beginning}accuracy{ending}": proportion([pair.hit for pair in pairs]),
        f"{beginning}margin{ending}": mean([pair.margin for pair in pairs]),
    }


def breakdown(pairs: Sequence[Comparison]) -> dict[str, Any]:
    return {name: group(part) for name, part in parts_of(pairs).items() if part}
