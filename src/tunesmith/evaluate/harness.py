"""A model measured on held-out records: the loss of the given answers, and the worth of its own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith.data.chat import encode_record
from tunesmith.data.config import DataConfig, SourceConfig
from tunesmith.data.entries import Entry, read_entries
from tunesmith.data.packing import batch_of, pack
from tunesmith.data.tally import Tally
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import DataError, Fix, Where
from tunesmith.evaluate.config import EvaluateConfig
from tunesmith.evaluate.metrics import ANSWER_METRICS, LOSS_METRICS, Score, exact_match
from tunesmith.evaluate.pairs import PAIRS, RANKINGS, measure_answers
from tunesmith.evaluate.scored import kind_of
from tunesmith.models.forward import base_model, score_only
from tunesmith.models.reference import Reference
from tunesmith.rollout.generator import Sampling, context_length, generate
from tunesmith.types import Completion, Conversation, Example, Kind

MICROBATCH_TOKENS = 4096

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Question:
    """What stands before the last answer of a record, as shown and as tokens, and that answer."""

    shown: str
    tokens: list[int]
    reference: str
    record: str


@dataclass(frozen=True, slots=True)
class Row:
    """One answer beside its reference; `ok` is exact match, `finished` False when the answer was cut by its limit."""

    task: str
    record: str
    prompt: str
    answer: str
    reference: str
    ok: bool
    finished: bool


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores by task and metric, every generated answer, and how many records could not be used, by reason.

    A task of pairs or rankings has no answers but a row in `pairs` for each, and groups of pairs in `detail`.
    """

    scores: dict[str, dict[str, Score]]
    rows: list[Row]
    unused: dict[str, dict[str, int]] = field(default_factory=dict)
    detail: dict[str, dict[str, Any]] = field(default_factory=dict)
    pairs: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Every task's metrics, and what lies behind them beside them."""
        return {
            task: {name: score.to_json() for name, score in found.items()} | self.detail.get(task, {})
            for task, found in self.scores.items()
        }


def evaluate(
    model: nn.Module,
    tokenizer: Tokenizer,
    settings: EvaluateConfig,
    data: DataConfig | None = None,
    *,
    reference: Reference | None = None,
    on_progress: Progress | None = None,
) -> Evaluation:
    """Every source of `settings.data` is a task; greedy answers, so that the result repeats.

    A source of pairs or rankings is measured by which answer the model finds likelier, and has no answers of its own;
    `reference` is what its rewards are measured against. `data` says which tokens the loss sees and how long records
    may be. `on_progress` hears (task, done, all) records, answers or pairs, at every batch and token; what it raises
    breaks off.
    """
    data = data or DataConfig()
    result = Evaluation({}, [])
    scores, unused, rows = result.scores, result.unused, result.rows
    for task, source in name_tasks(settings.data):
        left_out: Counter[str] = Counter()
        kind = kind_held(source)
        if kind != "sequence":
            how = Comparing(model, tokenizer, data, settings.limit, reference, on_progress)
            add_compared(result, task, source, kind, how)
            continue
        entries = list(read_entries(source, Tally(data.on_bad), settings.limit))
        found: dict[str, Score] = {}
        if any(name in LOSS_METRICS for name in settings.metrics):
            heard = None if on_progress is None else partial(on_progress, task)
            found |= measure_loss(model, tokenizer, entries, settings, data, left_out, heard)
        if any(name in ANSWER_METRICS for name in settings.metrics):
            answered = answer(model, tokenizer, task, entries, settings, left_out, on_progress)
            found |= judge(answered, settings)
            rows += answered
        if not found:
            raise nothing_to_measure(source, left_out)
        scores[task] = {name: found[name] for name in settings.metrics if name in found}
        unused[task] = dict(left_out)
    return result


def kind_held(source: SourceConfig) -> Kind:
    """Whether a source holds answers to compare, pairs or rankings, or single sequences."""
    if source.shape == "transcript":
        return "pair"
    return kind_of(source, ("pair", "sequence", "ranking"), otherwise="sequence")


@dataclass(frozen=True, slots=True)
class Comparing:
    """With what, and how, pairs and rankings are measured."""

    model: nn.Module
    tokenizer: Tokenizer
    data: DataConfig
    limit: int | None
    reference: Reference | None
    on_progress: Progress | None


def add_compared(result: Evaluation, task: str, source: SourceConfig, kind: Kind, how: Comparing) -> None:
    """Measure a source of pairs or rankings."""
    left_out: Counter[str] = Counter()
    hear = how.on_progress
    found = measure_answers(
        how.model,
        how.tokenizer,
        read_entries(source, Tally(how.data.on_bad), how.limit, kind),
        how.data,
        PAIRS if kind == "pair" else RANKINGS,
        left_out,
        reference=how.reference,
        on_progress=None if hear is None else lambda done, total: hear(task, done, total),
    )
    if found is None:
        raise nothing_to_measure(source, left_out)
    result.scores[task], result.detail[task], result.unused[task] = found.scores, found.detail, dict(left_out)
    result.pairs.extend({"task": task, **row} for row in found.rows)


def name_tasks(sources: Sequence[SourceConfig]) -> list[tuple[str, SourceConfig]]:
    """Each source under its file's name without endings; equal names are numbered."""
    named: list[tuple[str, SourceConfig]] = []
    seen: Counter[str] = Counter()
    for source in sources:
        name = Path(source.path).name.split(".")[0] or "data"
        seen[name] += 1
        named.append((name if seen[name] == 1 else f"{name}-{seen[name]}", source))
    return named


def measure_loss(
    model: nn.Module,
    tokenizer: Tokenizer,
    entries: Sequence[Entry],
    settings: EvaluateConfig,
    data: DataConfig,
    left_out: Counter[str],
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Score]:
    """Loss and perplexity over all trained tokens of the set, with intervals over its records."""
    examples: list[Example] = []
    for entry in entries:
        outcome = encode_record(entry, tokenizer, data)
        if outcome.dropped is not None:
            left_out[outcome.dropped] += 1
        examples += outcome.examples
    if not examples:
        return {}
    nll, weights = loss_sums(model, examples, on_progress)
    return {name: LOSS_METRICS[name](nll, weights) for name in settings.metrics if name in LOSS_METRICS}


def loss_sums(
    model: nn.Module, examples: Sequence[Example], on_progress: Callable[[int, int], None] | None = None
) -> tuple[list[float], list[float]]:
    """Weighted negative log-probability and weight of every example, in order."""
    nll, weights = [0.0] * len(examples), [0.0] * len(examples)
    device, done = base_model(model).device, 0
    for group in pack([len(example) for example in examples], MICROBATCH_TOKENS):
        batch = batch_of([examples[index] for index in group])
        logprobs = score_only(model, batch.to(device)).logprobs.double().cpu()
        sums = torch.zeros(2, len(group), dtype=torch.float64)
        sums[0].index_add_(0, batch.sequence, -batch.weight.double() * logprobs)
        sums[1].index_add_(0, batch.sequence, batch.weight.double())
        for index, top, bottom in zip(group, *sums.tolist(), strict=True):
            nll[index], weights[index] = top, bottom
        done += len(group)
        if on_progress is not None:
            on_progress(done, len(examples))
    return nll, weights


def answer(
    model: nn.Module,
    tokenizer: Tokenizer,
    task: str,
    entries: Sequence[Entry],
    settings: EvaluateConfig,
    left_out: Counter[str],
    on_progress: Progress | None,
) -> list[Row]:
    """The model's own greedy answer to every record that has a prompt, beside the given one."""
    room = context_length(model)
    questions: list[Question] = []
    for entry in entries:
        question = ask(entry, tokenizer)
        if question is None:
            left_out["no_text_answer"] += 1
        elif len(question.tokens) >= room:
            left_out["prompt_fills_context"] += 1
        else:
            questions.append(question)
    done = 0

    def finished(now: int, total: int) -> None:
        nonlocal done
        done = now
        heard()

    def heard() -> None:
        if on_progress is not None:
            on_progress(task, done, len(questions))

    answers = generate(
        model,
        tokenizer,
        [question.tokens for question in questions],
        Sampling(settings.max_new_tokens),
        batch_size=settings.batch_size,
        held=settings.products,
        on_progress=finished,
        on_token=heard,
    )
    return [
        Row(
            task,
            each.record,
            each.shown,
            made.text,
            each.reference,
            ok=exact_match(made.text, each.reference),
            finished=made.finished,
        )
        for each, made in zip(questions, answers, strict=True)
    ]


def ask(entry: Entry, tokenizer: Tokenizer) -> Question | None:
    """A record split before its last answer; None for documents and for answers that are tool calls."""
    record = f"{entry.file}:{entry.line}"
    if isinstance(entry, Completion):
        tokens = [*tokenizer.start_ids, *tokenizer.encode(entry.prompt, specials=False)]
        return Question(entry.prompt, tokens, entry.completion, record) if tokens else None
    if not isinstance(entry, Conversation):
        return None
    last = max((at for at, message in enumerate(entry.messages) if message.role == "assistant"), default=0)
    if last == 0 or entry.messages[last].tool_calls:
        return None
    before = entry.messages[:last]
    return Question(before[-1].content, tokenizer.prompt_ids(before, entry.tools), entry.messages[last].content, record)


def judge(rows: Sequence[Row], settings: EvaluateConfig) -> dict[str, Score]:
    if not rows:
        return {}
    answers, references = [row.answer for row in rows], [row.reference for row in rows]
    return {name: ANSWER_METRICS[name](answers, references) for name in settings.metrics if name in ANSWER_METRICS}


def write_rows(rows: Sequence[Row], path: Path, pairs: Sequence[Mapping[str, Any]] = ()) -> None:
    """One JSON object per answer and line, then one per pair."""
    listed = [*map(asdict, rows), *pairs]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in listed)
    path.write_text(text, encoding="utf-8")


def nothing_to_measure(source: SourceConfig, left_out: Mapping[str, int]) -> DataError:
    return DataError(
        "E153",
        "no record of this file can be measured",
        where=Where(source.path),
        evidence=[f"{count} records: {reason.replace('_', ' ')}" for reason, count in left_out.items() if count],
        fixes=[
            Fix("longer records", {"data.max_length": 4096}),
            "give records that end with an answer of the assistant",
        ],
    )
