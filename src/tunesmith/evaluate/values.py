"""A reward model or classifier measured on held-out records: what its values are worth, task by task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from tunesmith.data.config import DataConfig, SourceConfig
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.evaluate.classification import class_detail, class_scores, regression_scores
from tunesmith.evaluate.harness import Progress, name_tasks, nothing_to_measure
from tunesmith.evaluate.metrics import Score
from tunesmith.evaluate.rewards import (
    Comparison,
    Ranked,
    Steps,
    feedback_scores,
    pair_detail,
    pair_scores,
    process_scores,
    ranking_scores,
)
from tunesmith.evaluate.scored import Scored, kind_of, kinds_for, read_scored, row_of
from tunesmith.models.forward import base_model
from tunesmith.models.heads import positions
from tunesmith.models.meaning import Meaning
from tunesmith.types import Kind, Task


@dataclass(frozen=True, slots=True)
class Measured:
    """Scores by task and metric, what lies behind them (breakdown, calibration, confusion), a row per record, and how
    many records were left out.
    """

    scores: dict[str, dict[str, Score]]
    detail: dict[str, dict[str, Any]]
    rows: list[dict[str, Any]] = field(default_factory=list)
    unused: dict[str, dict[str, int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Every task's metrics, as the evaluation of a language model tells them, and its detail beside them."""
        return {
            task: {name: score.to_json() for name, score in found.items()} | self.detail[task]
            for task, found in self.scores.items()
        }


def evaluate_values(
    model: nn.Module,
    tokenizer: Tokenizer,
    meaning: Meaning,
    sources: Sequence[SourceConfig],
    settings: DataConfig,
    *,
    on_progress: Progress | None = None,
) -> Measured:
    """Every source is a task; what its records are decides what is measured.

    Rewards are measured on pairs, rankings and feedback, classifiers and regressors on labelled texts, process rewards
    on steps. `settings` says how long records may be (`data.limit`: only the first n of each source).
    """
    measured = Measured({}, {})
    for name, source in name_tasks(sources):
        kind = kind_of(source, kinds_for(meaning))
        task = Task(kind, "values", meaning.classes)
        told = None if on_progress is None else lambda done, total, name=name: on_progress(name, done, total)
        reading = read_scored(model, tokenizer, task, source, judging(settings, model), on_progress=told)
        if not reading.scored:
            raise nothing_to_measure(source, reading.unused)
        measured.scores[name], measured.detail[name] = worth_of(kind, reading.scored, meaning)
        measured.rows.extend({"task": name, **row_of(each, kind, meaning)} for each in reading.scored)
        measured.unused[name] = reading.unused
    return measured


def judging(settings: DataConfig, model: nn.Module) -> DataConfig:
    """The settings for records that are judged whole: nothing is split, nothing exceeds the model's positions."""
    longest = min(settings.max_length, positions(base_model(model).config))
    overlong = "drop" if settings.overlong == "split" else settings.overlong
    return settings.model_copy(update={"max_length": longest, "overlong": overlong, "train_on": "all_assistant"})


def worth_of(kind: Kind, scored: Sequence[Scored], meaning: Meaning) -> tuple[dict[str, Score], dict[str, Any]]:
    """The metrics for records of a kind, and their detail."""
    if kind == "pair":
        pairs = [comparison(each) for each in scored]
        return pair_scores(pairs), pair_detail(pairs)
    if kind == "ranking":
        return ranking_scores([Ranked(rewards_of(each), each.example.labels) for each in scored]), {}
    if kind == "feedback":
        rewards = [float(each.values[0, 0]) - meaning.offset for each in scored]
        return feedback_scores(rewards, labels_of(scored)), {}
    if kind == "process":
        return process_scores([Steps(rewards_of(each), each.example.labels) for each in scored]), {}
    values, labels = np.stack([each.values[-1] for each in scored]), np.array(labels_of(scored))
    if meaning.classes:
        classes = labels.astype(np.int64)
        return class_scores(values, classes), class_detail(values, classes, meaning.classes)
    return regression_scores(values[:, 0].tolist(), labels.tolist()), {}


def comparison(scored: Scored) -> Comparison:
    chosen, rejected = rewards_of(scored)
    source = Path(scored.example.file).name
    return Comparison(chosen, rejected, *scored.lengths, source=source, record=scored.record)


def rewards_of(scored: Scored) -> tuple[float, ...]:
    return tuple(map(float, scored.values[:, 0]))


def labels_of(scored: Sequence[Scored]) -> list[float]:
    return [each.example.labels[0] for each in scored]
