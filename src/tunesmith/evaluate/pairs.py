"""What a language model thinks of pairs and rankings: which answer is likelier, by how much, against its reference."""

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
from tunesmith.evaluate.rewards import Comparison, Ranked, best_margins, group, parts_of, ranking_scores
from tunesmith.models.forward import base_model, read_only
from tunesmith.models.reference import Reference
from tunesmith.types import Batch, Example, Task

MICROBATCH_TOKENS = 4096
PAIRS = Task("pair")
RANKINGS = Task("ranking")


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Summed log-probabilities of all answers of the examples, end to end, and their tokens.

    `reference` are the same sums under the reference, when there is one.
    """

    examples: list[Example]
    sums: Float[np.ndarray, " S"]
    lengths: Float[np.ndarray, " S"]
    reference: Float[np.ndarray, " S"] | None

    def by_record(self, figures: Float[np.ndarray, " S"]) -> list[list[float]]:
        """The figures of each example's answers."""
        ends = np.cumsum([len(example.cuts) for example in self.examples])
        return [part.tolist() for part in np.split(figures, ends[:-1])]

    def compared(self, figures: Float[np.ndarray, " S"]) -> list[Comparison]:
        """Pairs, chosen answers before rejected ones, with a figure for each answer."""
        return [
            Comparison(
                figure[0],
                figure[1],
                int(length[0]),
                int(length[1]),
                source=Path(example.file).name,
                record=f"{example.file}:{example.line}",
            )
            for example, figure, length in zip(
                self.examples, self.by_record(figures), self.by_record(self.lengths), strict=True
            )
        ]


@dataclass(frozen=True, slots=True)
class AnswersMeasured:
    """Scores of a set of pairs or rankings, groups of pairs, and a row per record."""

    scores: dict[str, Score]
    detail: dict[str, Any]
    rows: list[dict[str, Any]]


def measure_answers(
    model: nn.Module,
    tokenizer: Tokenizer,
    entries: Iterable[Entry],
    settings: DataConfig,
    task: Task,
    left_out: Counter[str],
    *,
    reference: Reference | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> AnswersMeasured | None:
    """Accuracy and margin of summed and of per-token log-probabilities, and of rewards where there is a reference.

    A reward is the log-ratio to the reference, without the factor beta, which changes neither an accuracy nor a sign.
    Of rankings, best first, accuracy is the share of a record's pairs of unequal rating in the right order,
    `best_first` how often the best answer is ahead of all others, the margin that of the best above the mean of those
    below it. None when nothing can be measured. Records are compared whole: what is too long is left out, never split.
    """
    examples = encoded(tokenizer, entries, settings, task, left_out)
    if not examples:
        return None
    found = likelihoods(model, examples, reference, on_progress)
    return told(found) if task == PAIRS else ranked(found)


def encoded(
    tokenizer: Tokenizer, entries: Iterable[Entry], settings: DataConfig, task: Task, left_out: Counter[str]
) -> list[Example]:
    """The examples of records that are compared whole; what is too long is left out and counted."""
    whole = settings.model_copy(update={"overlong": "drop"}) if settings.overlong == "split" else settings
    examples: list[Example] = []
    for entry in entries:
        outcome = encode_record(entry, tokenizer, whole, task)
        if outcome.dropped is not None:
            left_out[outcome.dropped] += 1
        examples += outcome.examples
    return examples


def likelihoods(
    model: nn.Module,
    examples: Sequence[Example],
    reference: Reference | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Likelihoods:
    """The sums of every answer, in order; batched by tokens."""
    answers = np.array([len(example.cuts) for example in examples])
    starts = np.cumsum(answers) - answers
    sums, lengths, others = (np.zeros(int(answers.sum())) for _ in range(3))
    device, done = base_model(model).device, 0
    for places in pack([len(example) for example in examples], MICROBATCH_TOKENS):
        batch = batch_of([examples[index] for index in places]).to(device)
        into = np.concatenate([np.arange(starts[index], starts[index] + answers[index]) for index in places])
        sums[into] = per_answer(read_only(model, batch, "logprobs").logprobs, batch)
        lengths[into] = per_answer(torch.ones_like(batch.weight), batch)
        if reference is not None:
            others[into] = per_answer(reference.logprobs(batch), batch)
        done += len(places)
        if on_progress is not None:
            on_progress(done, len(examples))
    return Likelihoods(list(examples), sums, lengths, None if reference is None else others)


def per_answer(values: Float[Tensor, " K"], batch: Batch) -> Float[np.ndarray, " S"]:
    """Sums of a figure of scored tokens over each answer."""
    sums = torch.zeros(len(batch.group), dtype=torch.float64)
    return sums.index_add(0, batch.sequence.cpu(), values.double().cpu()).numpy()


def ranked(found: Likelihoods) -> AnswersMeasured | None:
    """None when no record has answers of unequal rating."""

    def worth_of(figures: Float[np.ndarray, " S"], ending: str, beginning: str = "") -> dict[str, Score]:
        records = [
            Ranked(tuple(rewards), example.labels)
            for rewards, example in zip(found.by_record(figures), found.examples, strict=True)
        ]
        scores = ranking_scores(records)
        margins = best_margins(records)
        scores |= {"margin": mean(margins)} if margins else {}
        return {f"{beginning}{name}{ending}": score for name, score in scores.items()}

    scores = {**worth_of(found.sums, ""), **worth_of(found.sums / np.maximum(found.lengths, 1), "_per_token")}
    rows: list[dict[str, Any]] = [
        {"record": f"{example.file}:{example.line}", "ratings": list(example.labels), "likelihoods": sums}
        for example, sums in zip(found.examples, found.by_record(found.sums), strict=True)
    ]
    for row, lengths in zip(rows, found.by_record(found.lengths), strict=True):
        row["tokens"] = list(map(int, lengths))
    if found.reference is not None:
        scores = {**worth_of(found.sums - found.reference, "", "reward_"), **scores}
        for row, rewards in zip(rows, found.by_record(found.sums - found.reference), strict=True):
            row["rewards"] = rewards
    return AnswersMeasured(scores, {}, rows) if scores else None


def told(found: Likelihoods) -> AnswersMeasured:
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
    return AnswersMeasured(scores, detail, rows)


def worth(pairs: Sequence[Comparison], ending: str, beginning: str = "") -> dict[str, Score]:
    """How often the chosen answer has the higher figure, ties one half, and by how much on average."""
    return {
        f"{beginning}accuracy{ending}": proportion([pair.hit for pair in pairs]),
        f"{beginning}margin{ending}": mean([pair.margin for pair in pairs]),
    }


def breakdown(pairs: Sequence[Comparison]) -> dict[str, Any]:
    return {name: group(part) for name, part in parts_of(pairs).items() if part}
