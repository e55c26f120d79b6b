"""`tunesmith data convert`: records of one kind become records of another, and everything left out is counted."""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.canonical import learned, to_record
from tunesmith.data.config import SourceConfig
from tunesmith.data.entries import read_entries
from tunesmith.data.fields import Fields
from tunesmith.data.formats import MOST_TELLING, WORDS, Entry, form_of, recognise
from tunesmith.data.sources import open_source
from tunesmith.data.tally import Tally
from tunesmith.errors import DataError, Fix, UsageError, Where
from tunesmith.types import Feedback, Kind, Pair, Ranking, Record, Turns

Target = Literal["pairs", "feedback", "rankings", "sft", "canonical"]
Which = Literal["all", "adjacent", "best-worst"]

KINDS: dict[str, Kind] = {
    "pairs": "pair",
    "feedback": "feedback",
    "rankings": "ranking",
    "sft": "sequence",
    "labels": "label",
    "steps": "process",
}
SOURCES: dict[Target, tuple[Kind, ...]] = {  # what can become it, most telling first
    "pairs": ("pair", "ranking", "feedback"),
    "feedback": ("pair", "ranking", "feedback"),
    "rankings": ("pair", "ranking", "feedback"),
    "sft": ("pair", "ranking", "feedback", "sequence"),
    "canonical": MOST_TELLING,
}


@dataclass(frozen=True, slots=True)
class Wish:
    """What to make: of rankings `which` pairs, at least `margin` apart; `source_kind` where the keys do not tell it."""

    target: Target
    which: Which = "all"
    margin: float | None = None
    source_kind: Kind | None = None


@dataclass(slots=True)
class ConvertReport:
    """What was read and written; `left_out` counts by reason."""

    source: str
    out: str
    kind: Kind
    read: int = 0
    written: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "left_out": {reason: count for reason, count in self.left_out.items() if count}}


def default_out(source: str, target: Target) -> Path:
    """`data.pairs.jsonl` beside `data.jsonl`; UsageError E221 where the source is not one file."""
    path = Path(source)
    if not path.is_file():
        raise UsageError("E221", f"{source} is not one file, so the new one needs a name", fixes=["-o FILE.jsonl"])
    return path.with_name(f"{path.name.split('.')[0]}.{target}.jsonl")


def convert_file(source: SourceConfig, out: Path, wish: Wish, tally: Tally, *, force: bool = False) -> ConvertReport:
    """Write the converted records as jsonl, all of them or none; an existing file is kept unless `force`.

    Raises UsageError E053 for an existing file, DataError E221 for what cannot become the target and for an empty
    result, and what reading raises.
    """
    if out.exists() and not force:
        fixes = ["give another name with -o", "replace it: --force"]
        raise UsageError("E053", "the file to write exists already", where=Where(str(out)), fixes=fixes)
    kind = wish.source_kind or find_kind(source, wish.target)
    check_options(wish, kind)
    report = ConvertReport(source.path, str(out), kind)
    stage = out.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        with stage.open("w", encoding="utf-8", newline="\n") as file:
            for record in converted(_counted(read_entries(source, tally, kind=kind), report), wish, report):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                report.written += 1
            file.flush()
            os.fsync(file.fileno())
        report.left_out.update(tally.skipped)
        if not report.written:
            raise _nothing(report, wish)
        os.replace(stage, out)
    finally:
        stage.unlink(missing_ok=True)
    return report


def find_kind(source: SourceConfig, target: Target) -> Kind:
    """What the first record is, among the kinds that can become the target."""
    record = _first_record(source)
    fields = Fields(record, source.columns)
    for kind in SOURCES[target]:
        if form_of(fields, kind, source.shape) is not None:
            return kind
    for kind in MOST_TELLING:
        if form_of(fields, kind, source.shape) is not None:
            raise _no_way(record, kind, target)
    recognise(record, source, SOURCES[target][0])  # names the keys and the shapes
    return SOURCES[target][0]


def check_options(wish: Wish, kind: Kind) -> None:
    """Options that would change nothing (UsageError E221)."""
    unused = None
    if wish.margin is not None and (wish.target not in ("pairs", "feedback") or kind == "feedback"):
        unused = "--margin"
    if wish.which != "all" and (wish.target != "pairs" or kind != "ranking"):
        unused = f"--{wish.which}"
    if unused is not None:
        message = f"{unused} has no meaning when {WORDS[kind]} become {wish.target}"
        raise UsageError("E221", message, where=Where("command line"), fixes=[f"leave {unused} out"])


def _no_way(record: Record, found: Kind, target: Target) -> DataError:
    return DataError(
        "E221",
        f"{WORDS[found]} cannot become {target}: they say nothing of the kind",
        where=Where(record.file, record.line),
        evidence=[f"{target} can be made of {WORDS[kind]}" for kind in SOURCES[target]],
        fixes=[f"name the kind of the records if this guess is wrong: --from {'|'.join(KINDS)}"],
    )


def converted(entries: Iterable[Entry], wish: Wish, report: ConvertReport) -> Iterator[dict[str, Any]]:
    """The records to write, in order."""
    if wish.target == "canonical":
        for entry in entries:
            yield to_record(entry)
    elif wish.target == "sft":
        for entry in entries:
            yield from _best(entry, report)
    elif report.kind == "feedback" and wish.target != "feedback":
        feedback = (entry for entry in entries if isinstance(entry, Feedback))
        grouped = _matched(feedback, report) if wish.target == "pairs" else _ranked(feedback, report)
        yield from map(to_record, grouped)
    else:
        for entry in entries:
            yield from map(to_record, _compared(entry, wish, report))


def pairs_of(ranking: Ranking, wish: Wish, left_out: Counter[str]) -> Iterator[Pair]:
    """Pairs of a ranking; ties, equal answers and those closer than the margin are left out and counted."""
    count = len(ranking.answers)
    chosen = {
        "all": list(combinations(range(count), 2)),
        "adjacent": list(pairwise(range(count))),
        "best-worst": [(0, count - 1)],
    }[wish.which]
    for better, worse in chosen:
        apart = None if ranking.scores is None else ranking.scores[better] - ranking.scores[worse]
        if apart == 0:
            left_out["ties"] += 1
        elif too_close(apart, wish, ranking, left_out):
            continue
        elif alike(ranking.answers[better], ranking.answers[worse]):
            left_out["equal answers"] += 1
        else:
            yield Pair(
                ranking.prompt,
                ranking.answers[better],
                ranking.answers[worse],
                ranking.file,
                ranking.line,
                ranking.tools,
                apart,
            )


def too_close(apart: float | None, wish: Wish, entry: Pair | Ranking, left_out: Counter[str]) -> bool:
    """Whether two answers are closer than the margin asked for, which is counted; E221 where nothing says how close."""
    if wish.margin is None:
        return False
    if apart is None:
        raise DataError(
            "E221",
            "--margin needs scores (or margins), and this record has none",
            where=Where(entry.file, entry.line),
            fixes=["leave --margin out: the order alone then decides"],
        )
    left_out[f"closer than the margin {wish.margin:g}"] += apart < wish.margin
    return apart < wish.margin


def undecided(entry: Pair | Ranking) -> bool:
    """Whether nothing tells the answers apart: they are equal, or rated alike."""
    if isinstance(entry, Pair):
        return alike(entry.chosen, entry.rejected)
    if entry.scores is not None and len(set(entry.scores)) == 1:
        return True
    return all(alike(entry.answers[0], other) for other in entry.answers[1:])


def alike(one: Turns, other: Turns) -> bool:
    """Whether two answers say the same, but for white space around each turn and for weights."""
    if isinstance(one, str) or isinstance(other, str):
        return isinstance(one, str) and isinstance(other, str) and one.strip() == other.strip()
    stripped = [[replace(turn, content=turn.content.strip(), weight=None) for turn in turns] for turns in (one, other)]
    return stripped[0] == stripped[1]


def _compared(entry: Entry, wish: Wish, report: ConvertReport) -> Iterator[Pair | Ranking | Feedback]:
    """Comparisons as comparisons of the other form, or as feedback on the two answers that differ most."""
    if isinstance(entry, Feedback):
        yield entry
        return
    assert isinstance(entry, Pair | Ranking), "the kinds that can become it are listed"
    if undecided(entry):
        report.left_out["answers equal or rated alike"] += 1
        return
    if isinstance(entry, Pair):
        pairs = [] if too_close(entry.margin, wish, entry, report.left_out) else [entry]
    elif wish.target == "rankings":
        yield entry
        return
    else:
        narrowed = replace(wish, which="best-worst") if wish.target == "feedback" else wish
        pairs = list(pairs_of(entry, narrowed, report.left_out))
        report.left_out["answers between the best and the worst"] += max(
            0, len(entry.answers) - 2 if wish.target == "feedback" else 0
        )
    for pair in pairs:
        if wish.target == "feedback":
            for answer, good in ((pair.chosen, True), (pair.rejected, False)):
                yield Feedback(pair.prompt, answer, good, pair.file, pair.line, pair.tools)
        elif wish.target == "rankings":
            scores = None if pair.margin is None else (pair.margin, 0.0)
            answers = (pair.chosen, pair.rejected)
            yield Ranking(pair.prompt, answers, pair.file, pair.line, pair.tools, scores)
        else:
            yield pair


def _best(entry: Entry, report: ConvertReport) -> Iterator[dict[str, Any]]:
    if isinstance(entry, Pair):
        yield learned(entry, entry.chosen)
    elif isinstance(entry, Ranking):
        yield learned(entry, entry.answers[0])
    elif isinstance(entry, Feedback):
        report.left_out["bad answers"] += not entry.good
        if entry.good:
            yield learned(entry, entry.answer)
    else:
        yield to_record(entry)


def _matched(entries: Iterable[Feedback], report: ConvertReport) -> Iterator[Pair]:
    """Each good answer with the next bad one to the same prompt, every answer used once; the others are counted."""
    waiting: dict[str, list[Feedback]] = {}
    for entry in entries:
        others = waiting.setdefault(_prompt_key(entry), [])
        match = next((at for at, other in enumerate(others) if other.good != entry.good), None)
        if match is None:
            others.append(entry)
            continue
        good, bad = (entry, others.pop(match)) if entry.good else (others.pop(match), entry)
        if alike(good.answer, bad.answer):
            report.left_out["equal answers"] += 1
        else:
            yield Pair(entry.prompt, good.answer, bad.answer, entry.file, entry.line, entry.tools)
    left = [entry for others in waiting.values() for entry in others]
    report.left_out["good answers without a bad one"] += sum(entry.good for entry in left)
    report.left_out["bad answers without a good one"] += sum(not entry.good for entry in left)


def _ranked(entries: Iterable[Feedback], report: ConvertReport) -> Iterator[Ranking]:
    """All answers to a prompt, the good ones (score 1) before the bad ones (score 0)."""
    groups: dict[str, list[Feedback]] = {}
    for entry in entries:
        groups.setdefault(_prompt_key(entry), []).append(entry)
    for group in groups.values():
        group.sort(key=lambda entry: not entry.good)
        if group[0].good == group[-1].good:
            word = "good answers without a bad one" if group[0].good else "bad answers without a good one"
            report.left_out[word] += len(group)
            continue
        scores = tuple(float(entry.good) for entry in group)
        first = group[0]
        answers = tuple(entry.answer for entry in group)
        yield Ranking(first.prompt, answers, first.file, first.line, first.tools, scores)


def _prompt_key(entry: Feedback) -> str:
    return repr((entry.prompt, entry.tools))


def _counted(entries: Iterable[Entry], report: ConvertReport) -> Iterator[Entry]:
    for entry in entries:
        report.read += 1
        yield entry


def _first_record(source: SourceConfig) -> Record:
    tally = Tally("skip")
    for records in open_source(source, tally):
        for record in records:
            return record
    raise DataError(
        "E042",
        "0 records: nothing in it can be read",
        where=Where(source.path, 1),
        fixes=[Fix("see what is wrong", command=f"tunesmith data fix {source.path}")],
    )


def _nothing(report: ConvertReport, wish: Wish) -> DataError:
    return DataError(
        "E221",
        f"none of {report.read:,} records can become {wish.target}; nothing was written",
        where=Where(report.source),
        evidence=[f"{count:,} left out: {reason}" for reason, count in report.left_out.items() if count],
        fixes=["choose another target: --to pairs|feedback|rankings|sft", "ask for a smaller --margin"],
    )
