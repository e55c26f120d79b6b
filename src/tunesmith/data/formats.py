"""Records of known shapes become what an objective learns from; nothing in a text is ever changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tunesmith.data.config import Shape, SourceConfig
from tunesmith.data.encoding import quoted
from tunesmith.data.fields import Fields
from tunesmith.data.labels import STEPS, read_labelled, read_process
from tunesmith.data.preferences import ANSWERS, SCORES, read_feedback, read_pair, read_ranking
from tunesmith.data.sequences import read_sequence
from tunesmith.data.transcripts import is_transcript
from tunesmith.errors import DataError, Fix, Where, nearest
from tunesmith.types import (
    Completion,
    Conversation,
    Document,
    Feedback,
    Kind,
    Labelled,
    Pair,
    Process,
    Ranking,
    Record,
)

Entry = Conversation | Completion | Document | Pair | Feedback | Ranking | Labelled | Process


class Form(NamedTuple):
    """A shape and the fields that tell it; `listed` is a field that must hold a list."""

    shape: Shape
    required: tuple[str, ...]
    listed: str | None = None


FORMS: dict[Kind, tuple[Form, ...]] = {  # in the order in which they are tried
    "sequence": (
        Form("messages", ("messages",)),
        Form("sharegpt", ("conversations",)),
        Form("alpaca", ("instruction", "output")),
        Form("prompt_completion", ("prompt", "completion")),
        Form("text", ("text",)),
    ),
    "pair": (
        Form("preference", ("prompt", "chosen", "rejected")),
        Form("sharegpt", ("conversations", "chosen", "rejected")),
        Form("alpaca", ("instruction", "chosen", "rejected")),
        Form("messages", ("chosen_messages", "rejected_messages")),
        Form("messages", ("messages", "chosen", "rejected")),
        Form("preference", ("chosen", "rejected")),
        Form("alpaca", ("instruction", "output"), "output"),
    ),
    "feedback": (
        Form("messages", ("messages", "label")),
        Form("sharegpt", ("conversations", "label")),
        Form("alpaca", ("instruction", "output", "label")),
        Form("prompt_completion", ("prompt", "completion", "label")),
    ),
    "ranking": (
        *(Form("ranking", ("prompt", name), name) for name in ANSWERS),
        *(Form("alpaca", ("instruction", name), name) for name in ANSWERS),
        *(Form("sharegpt", ("conversations", name), name) for name in ANSWERS),
        *(Form("messages", ("messages", name), name) for name in ANSWERS),
    ),
    "label": (
        Form("messages", ("messages", "label")),
        Form("sharegpt", ("conversations", "label")),
        Form("text", ("text", "label")),
    ),
    "process": (*(Form("process", ("prompt", name), name) for name in STEPS),),
}
WORDS: dict[Kind, str] = {
    "sequence": "answers or texts to learn",
    "pair": "pairs (a chosen and a rejected answer)",
    "feedback": "feedback (an answer and a label, good or bad)",
    "ranking": "rankings (answers to one prompt, best first)",
    "label": "texts with a label",
    "process": "answers in steps, each with a label",
}
_OPTIONAL = ("tools", "system", "input", "history", "margin", "score_chosen", "score_rejected", "labels", *SCORES)
_TURN_FIELDS = ("role", "content", "from", "value")
FIELDS = frozenset(
    (*_OPTIONAL, *_TURN_FIELDS, *(name for forms in FORMS.values() for form in forms for name in form.required))
)
CONVERSIONS: dict[tuple[Kind, Kind], str] = {  # what `tunesmith data convert` makes, by what there is and is wanted
    ("ranking", "pair"): "pairs",
    ("feedback", "pair"): "pairs",
    ("pair", "feedback"): "feedback",
    ("ranking", "feedback"): "feedback",
    ("pair", "ranking"): "rankings",
    ("feedback", "ranking"): "rankings",
    ("pair", "sequence"): "sft",
    ("ranking", "sequence"): "sft",
    ("feedback", "sequence"): "sft",
}
_OBJECTIVES: dict[Kind, str] = {
    "sequence": "sft",
    "pair": "dpo",
    "feedback": "kto",
    "ranking": "ranking_reward",
    "label": "classify",
    "process": "process_reward",
}
MOST_TELLING: tuple[Kind, ...] = ("pair", "ranking", "process", "feedback", "label", "sequence")
_OTHER_NAMES = {  # how other files call our fields; only to propose a mapping
    "messages": ("conversation", "dialog", "dialogue", "chat", "turns"),
    "conversations": ("conversation",),
    "instruction": ("question", "query", "problem", "task", "input"),
    "output": ("response", "answer", "completion", "target", "reply", "solution", "ref"),
    "prompt": ("question", "query", "problem", "input", "source"),
    "completion": ("response", "answer", "output", "target", "reply", "solution"),
    "text": ("content", "document", "body", "page", "line"),
    "chosen": ("preferred", "winner", "better", "accepted", "positive", "answer_chosen", "response_chosen"),
    "rejected": ("dispreferred", "loser", "worse", "refused", "negative", "answer_rejected", "response_rejected"),
    "label": ("kto_tag", "class", "category", "rating", "score", "good", "target"),
    "answers": ("candidates", "outputs", "ranking"),
    "steps": ("solution", "stepwise"),
}


def recognise(record: Record, source: SourceConfig, kind: Kind = "sequence") -> Shape:
    """The shape the source names, or the first one of the kind whose fields the record has.

    Raises E210 when it is of another kind, E047 when none fits.
    """
    unknown = next((name for name in source.columns if name not in FIELDS), None)
    if unknown is not None:
        close = nearest(unknown, FIELDS)
        raise DataError(
            "E047",
            f"columns maps {unknown!r}, which is no field of any shape",
            where=Where(record.file, record.line),
            fixes=[f"did you mean {close}?" if close else f"known fields: {', '.join(sorted(FIELDS))}"],
        )
    fields = Fields(record, source.columns)
    form = form_of(fields, kind, source.shape)
    if form is not None:
        return "transcript" if form.shape == "preference" and _is_transcript(fields) else form.shape
    if source.shape != "auto" and any(form.shape == source.shape for form in FORMS[kind]):
        return source.shape
    if source.shape == "transcript" and kind == "pair":
        return source.shape
    for other in MOST_TELLING:
        if other != kind and form_of(fields, other) is not None:
            raise _wrong_kind(fields, kind, other)
    raise _unknown_shape(fields, kind)


def form_of(fields: Fields, kind: Kind, shape: Shape = "auto") -> Form | None:
    """The first form of the kind (and shape) whose fields the record has."""
    return next(
        (
            form
            for form in FORMS[kind]
            if shape in ("auto", form.shape)
            and all(map(fields.has, form.required))
            and (form.listed is None or isinstance(fields.value(form.listed), list))
        ),
        None,
    )


def is_judged(record: Record, source: SourceConfig) -> bool:
    """Whether the record also says if its answer is good."""
    fields = Fields(record, source.columns)
    return form_of(fields, "feedback", source.shape) is not None and isinstance(fields.value("label"), bool)


def convert(record: Record, shape: Shape, columns: Mapping[str, str], kind: Kind = "sequence") -> Entry:
    """The record as what its kind and shape say; DataError names the field that stands in the way."""
    fields = Fields(record, columns)
    if kind == "pair":
        return read_pair(fields, shape)
    if kind == "feedback":
        return read_feedback(fields, shape)
    if kind == "ranking":
        return read_ranking(fields)
    if kind == "label":
        return read_labelled(fields, shape)
    if kind == "process":
        return read_process(fields)
    return read_sequence(fields, shape)


def _is_transcript(fields: Fields) -> bool:
    return not fields.has("prompt") and all(is_transcript(fields.value(name)) for name in ("chosen", "rejected"))


def _wrong_kind(fields: Fields, kind: Kind, found: Kind) -> DataError:
    """E210: the record is good for another objective."""
    record, form = fields.record, form_of(fields, found)
    names = "" if form is None else f" ({', '.join(map(fields.column, form.required))})"
    fixes: list[Fix | str] = []
    to = CONVERSIONS.get((found, kind))
    if to is not None:
        path = Path(record.file)
        out = path.with_name(f"{path.name.split('.')[0]}.{to}.jsonl")
        fixes.append(Fix("convert it", command=f"tunesmith data convert {quoted(path)} --to {to} -o {quoted(out)}"))
    name = _OBJECTIVES[found]
    fixes.append(Fix(f"use an objective for such records: objective={name}", {"objective": name}))
    return DataError(
        "E210",
        f"the objective learns from {WORDS[kind]}; this record is one of {WORDS[found]}{names}",
        where=Where(record.file, record.line),
        evidence=[f"{form.shape}: {', '.join(form.required)}" for form in FORMS[kind]],
        fixes=fixes,
    )


def _unknown_shape(fields: Fields, kind: Kind) -> DataError:
    record = fields.record
    present = {name for name in FIELDS if fields.has(name)}
    keys = ", ".join(map(str, record.value))[:200] or "none"
    evidence = [f"{form.shape}: {', '.join(form.required)}" for form in FORMS[kind]]
    guesses = [(form, _guess(form.required, present, record)) for form in FORMS[kind] if form.listed is None]
    fewest = min((len(mapping) for _, mapping in guesses if mapping), default=0)
    fixes: list[Fix | str] = []
    for form, mapping in guesses:
        if mapping and len(mapping) == fewest:
            setting = " ".join(f"data.train.0.columns.{ours}={theirs}" for ours, theirs in mapping.items())
            fixes.append(Fix(f"read it as {form.shape}: {setting}", set={"data.train.0.columns": mapping}))
    fixes.append("map our fields to the columns of the file: data.train.0.columns.FIELD=COLUMN")
    message = f"no known shape: the record has the keys {keys}"
    return DataError("E047", message, where=Where(record.file, record.line), evidence=evidence, fixes=fixes)


def _guess(required: tuple[str, ...], present: set[str], record: Record) -> dict[str, str]:
    """A column for each missing field by its usual other names; empty when one has none."""
    mapping: dict[str, str] = {}
    for name in required:
        if name in present:
            continue
        types = (str, bool, int, float) if name == "label" else (str, list)
        others = _OTHER_NAMES.get(name, ())
        found = next((other for other in others if isinstance(record.value.get(other), types)), None)
        if found is None or found in mapping.values():
            return {}
        mapping[name] = found
    return mapping
