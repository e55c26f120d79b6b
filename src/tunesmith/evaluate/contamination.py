"""Whether exercises stand in training data: overlap of word n-grams, by exercise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.data.config import SourceConfig
from tunesmith.data.sources import read_source
from tunesmith.data.tally import Tally
from tunesmith.evaluate.exercise import Exercise
from tunesmith.evaluate.metrics import words

WORDS = 8  # of an n-gram; a shorter question is looked for as a whole
FEWEST = 4  # words that a question must have to be looked for
FOUND = 0.5  # share of a question's n-grams from which on it counts as seen


@dataclass(frozen=True, slots=True)
class Seen:
    """An exercise and which share of its n-grams occur in the training data, the first of them at `record`."""

    name: str
    share: float
    record: str


@dataclass(frozen=True, slots=True)
class Overlap:
    """What training data has of one task: exercises looked at, too short to be looked for, and found, most first."""

    task: str
    checked: int
    too_short: int
    records: int
    seen: tuple[Seen, ...]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(one.name for one in self.seen)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def asked_text(exercise: Exercise) -> str:
    """What would be known by heart: the question as the record has it, or the text."""
    question = exercise.fields.get("question")
    return question if isinstance(question, str) else exercise.prompt or exercise.reference


def grams(text: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    return (tuple(text[at : at + size]) for at in range(len(text) - size + 1))


def texts_in(value: Any) -> Iterator[str]:
    """Every text of a record, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from texts_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from texts_in(part)


def records_in(sources: Iterable[SourceConfig]) -> Iterator[tuple[str, list[str]]]:
    """Place and texts of every training record; bad ones are passed over, as they are no part of a task."""
    for source in sources:
        for record in read_source(source, Tally("skip")):
            yield f"{record.file}:{record.line}", list(texts_in(record.value))


def overlaps(
    tasks: dict[str, Sequence[Exercise]], training: Iterable[tuple[str, list[str]]], size: int = WORDS
) -> list[Overlap]:
    """Look for the exercises of all tasks in one pass over the training data."""
    wanted: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    totals: dict[tuple[str, str], int] = {}
    short = dict.fromkeys(tasks, 0)
    for task, exercises in tasks.items():
        for exercise in exercises:
            text = words(asked_text(exercise))
            if len(text) < FEWEST:
                short[task] += 1
                continue
            own = set(grams(text, min(size, len(text))))
            totals[task, exercise.name] = len(own)
            for gram in own:
                wanted.setdefault(gram, []).append((task, exercise.name))
    hits: dict[tuple[str, str], set[tuple[str, ...]]] = {}
    places: dict[tuple[str, str], str] = {}
    lengths, count = sorted({len(gram) for gram in wanted}), 0
    for place, texts in training:
        count += 1
        for text in map(words, texts):
            for length in lengths:
                for gram in grams(text, length):
                    for key in wanted.get(gram, ()):
                        hits.setdefault(key, set()).add(gram)
                        places.setdefault(key, place)
    return [overlap(task, len(tasks[task]), short[task], count, totals, hits, places) for task in tasks]


def overlap(
    task: str,
    every: int,
    short: int,
    records: int,
    totals: dict[tuple[str, str], int],
    hits: dict[tuple[str, str], set[tuple[str, ...]]],
    places: dict[tuple[str, str], str],
) -> Overlap:
    shares = {key: len(found) / totals[key] for key, found in hits.items() if key[0] == task}
    seen = [Seen(key[1], share, places[key]) for key, share in shares.items() if share >= FOUND]
    ordered = sorted(seen, key=lambda one: (-one.share, one.name))
    return Overlap(task, every - short, short, records, tuple(ordered))
