"""How much there is to train on: from the prepared data when there is some, else from a few hundred records."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Int

from tunesmith.data.config import DataConfig, SourceConfig
from tunesmith.data.content import is_packed, kind_of
from tunesmith.data.entries import Entry, read_entries
from tunesmith.data.hub import PREFIX
from tunesmith.data.mixing import Mixture
from tunesmith.data.outcome import IMITATION
from tunesmith.data.prepared import Prepared, prepare_key, prepared_folder
from tunesmith.data.savings import Beginning, Beginnings, PreparedBeginnings, beginning
from tunesmith.data.sources import find_files
from tunesmith.data.survey import DROPPED, MOST_IDENTICAL, Survey, covering_length
from tunesmith.data.tables import row_group_ends
from tunesmith.data.tally import Tally, data_error
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import DataError, Diagnostic, Fix, UsageError, Where
from tunesmith.types import Document, Kind, Task

CHOSEN = 300  # records that are tokenised
SMALL = 16_000_000  # bytes of a source that is read to its end
FIRST = 2000  # records read of a larger one
HASHED = 1_000_000_000  # bytes that are hashed to find prepared data
CHARACTERS = 500_000  # of a long document that are tokenised
SOMEWHERE = 0  # the line of a record whose line is not known
UNPACKED = 3.0  # usual ratio of a .gz file


@dataclass(frozen=True, slots=True)
class SourceCount:
    """One source: its records, and the examples of those that were tokenised; `per_epoch` counts its weight."""

    records: int
    pool: float  # examples of one pass over it
    per_epoch: float
    lengths: np.ndarray  # tokens of each example looked at
    scored: np.ndarray  # tokens of each that the loss reads
    labels: Counter[str] = field(default_factory=Counter)  # of the examples looked at: good and bad, or the classes
    rated: int = 0  # of the examples looked at: pairs that say by how much the chosen answer is better
    prompts: np.ndarray | None = None  # tokens of each one's prompt, where it will meet answers to other prompts
    seen: tuple[Beginning, ...] = ()  # how the examples looked at begin


@dataclass(frozen=True, slots=True)
class Counted:
    """All sources; `looked_at` is None when every record was counted, else how many were tokenised."""

    sources: tuple[SourceCount, ...]
    looked_at: int | None
    overlong: float  # share of the records looked at that the over-length policy drops or cuts
    doubts: tuple[Diagnostic, ...] = ()  # what would stop the training if all records were like those looked at
    seen: Beginnings = ()  # how the examples looked at begin

    @property
    def records(self) -> int:
        return sum(source.records for source in self.sources)

    @property
    def examples(self) -> float:
        """Examples of one epoch."""
        return sum(source.per_epoch for source in self.sources)

    @property
    def labels(self) -> dict[str, float]:
        """How often each label stands in one epoch."""
        total: dict[str, float] = {}
        for source in self.sources:
            share = source.per_epoch / len(source.lengths)
            for name, count in source.labels.items():
                total[name] = total.get(name, 0.0) + count * share
        return total

    @property
    def rated_share(self) -> float:
        """Share of the pairs that say by how much the chosen answer is better."""
        shares = [source.per_epoch * source.rated / len(source.lengths) for source in self.sources]
        return sum(shares) / self.examples

    def draw(self, count: int, chance: np.random.Generator) -> Int[np.ndarray, "E 2"]:
        """Lengths of `count` examples as an epoch would mix them, and the tokens to leave for each in a microbatch.

        Those are more where a prompt meets a longer answer to another prompt, of which as much is kept as the longest
        example has room for.
        """
        lengths = np.concatenate([source.lengths for source in self.sources])
        odds = np.concatenate(
            [np.full(len(source.lengths), source.per_epoch / len(source.lengths)) for source in self.sources]
        )
        chosen = chance.choice(len(lengths), count, p=odds / odds.sum())
        own, prompts = lengths[chosen], self.prompts
        if prompts is None:
            return np.stack([own, own], axis=1)
        answers, longest = np.sort(lengths - prompts), lengths.max()
        fitting = np.maximum(1, np.searchsorted(answers, longest - prompts[chosen], side="right"))
        others = answers[(chance.random(count) * fitting).astype(int)]
        return np.stack([own, np.maximum(own, np.minimum(prompts[chosen] + others, longest))], axis=1)

    @property
    def prompts(self) -> np.ndarray | None:
        """Tokens of the prompts of all examples looked at, where they will meet answers to other prompts."""
        known = [source.prompts for source in self.sources if source.prompts is not None]
        return np.concatenate(known) if len(known) == len(self.sources) else None

    @property
    def prompt_share(self) -> float:
        """Share of the tokens that are of prompts which will meet answers to other prompts."""
        known = [(source, source.prompts) for source in self.sources if source.prompts is not None]
        read = sum(source.per_epoch * float(prompts.mean()) for source, prompts in known)
        return read / (self.mean_length * self.examples)

    @property
    def mean_length(self) -> float:
        return sum(source.per_epoch * float(source.lengths.mean()) for source in self.sources) / self.examples

    @property
    def scored_share(self) -> float:
        """Share of the tokens that the loss reads."""
        read = sum(source.per_epoch * float(source.scored.mean()) for source in self.sources)
        return read / (self.mean_length * self.examples)


def count_data(settings: DataConfig, tokenizer: Tokenizer, task: Task = IMITATION) -> Counted:
    """Count the training data. Raises DataError for bad records it meets, UsageError E025 when there are no sources."""
    if not settings.train:
        raise UsageError(
            "E025", "there is no training data", where=Where(field="data.train"), fixes=["data.train=FILE"]
        )
    prepared = find_prepared(settings, tokenizer, task)
    if prepared is not None:
        return count_prepared(prepared, settings, task)
    chosen = max(1, CHOSEN // len(settings.trained))
    survey = Survey(tokenizer, settings, task=task)
    counts, looked_at = [], 0
    for source in settings.trained:
        records, entries = spread_entries(source, chosen, settings, task.kind)
        counts.append(_tokenise(records, entries, source.weight, survey))
        looked_at += len(entries)
    total = sum(count.records for count in counts)
    doubts = _doubts(survey, None if looked_at >= total else total)
    kept = tuple(count for count in mixed(counts, settings) if len(count.lengths))
    overlong = survey.notes["too_long"]
    if not kept:
        raise nothing_left(settings, looked_at, survey)
    seen = tuple(one for count in counts for one in count.seen)
    return Counted(kept, looked_at if looked_at < total else None, overlong / max(1, looked_at), doubts, seen)


def mixed(counts: Sequence[SourceCount], settings: DataConfig) -> list[SourceCount]:
    """The counts with the general sources as often in an epoch as their share of it says."""
    if not settings.general.train:
        return list(counts)
    first = len(settings.train)
    own, general = list(counts[:first]), counts[first:]
    mixture = Mixture(first, settings.general.share)
    numbers = mixture.counts(sum(count.per_epoch for count in own), [count.per_epoch for count in general])
    return own + [replace(count, per_epoch=float(number)) for count, number in zip(general, numbers, strict=True)]


def _doubts(survey: Survey, total: int | None) -> tuple[Diagnostic, ...]:
    """Raise what is sure to stop the training; what only the records looked at say (of `total`) is a warning."""
    doubts = []
    for found in survey.diagnostics():
        if found.level != "error":
            continue
        many = survey.notes["identical"] > 2 * MOST_IDENTICAL * survey.records
        told = found if total is None else _told_of_some(found, survey.records, total)
        if total is None or found.code == "E031" or (found.code == "E215" and many):
            raise data_error(told)
        doubts.append(replace(told, level="warning"))
    return tuple(doubts)


def _told_of_some(found: Diagnostic, looked_at: int, total: int) -> Diagnostic:
    seen = f"seen in {looked_at:,} of about {total:,} records, taken from all over the data"
    if found.where is not None and found.where.line == SOMEWHERE:
        return replace(found, where=Where(found.where.file), evidence=(seen, *found.evidence[1:]))
    return replace(found, evidence=(*found.evidence, seen))


def nothing_left(settings: DataConfig, looked_at: int, survey: Survey) -> DataError:
    fixes = [Fix("look at the tokens", command="tunesmith data preview RECIPE")]
    overlong = survey.notes["too_long"]
    if overlong and survey.task.kind == "sequence":
        fixes.insert(0, Fix("data.overlong=split", {"data.overlong": "split"}, effect="long records become several"))
    elif overlong:
        longer, share = covering_length(survey.lengths, settings.max_length)
        effect = f"covers {share:.1%} of records"
        fixes.insert(0, Fix(f"data.max_length={longer}", {"data.max_length": longer}, effect=effect))
    return DataError(
        "E078",
        f"no example is left to train on: none of {looked_at:,} records looked at gives one",
        where=Where(file=settings.train[0].path),
        evidence=[f"{overlong:,} are longer than data.max_length = {settings.max_length:,} tokens"] if overlong else [],
        fixes=fixes,
    )


def find_prepared(settings: DataConfig, tokenizer: Tokenizer, task: Task = IMITATION) -> Prepared | None:
    """The prepared data of an earlier run with the same files and settings."""
    sources = settings.trained
    if any(source.path.startswith(PREFIX) for source in sources):
        return None
    if sum(path.stat().st_size for source in sources for path in find_files(source.path)) > HASHED:
        return None
    folder = prepared_folder(sources, prepare_key(sources, settings, tokenizer, task))
    return Prepared(folder) if (folder / "about.json").is_file() else None


def count_prepared(prepared: Prepared, settings: DataConfig, task: Task) -> Counted:
    lengths, report = prepared.lengths, prepared.report
    share = report.trained_tokens / max(1, report.tokens)
    counts = []
    for index, source in enumerate(settings.trained):
        span = slice(prepared.bounds[index], prepared.bounds[index + 1])
        part = lengths[span]
        size, records = len(part), round(report.records * len(part) / max(1, len(lengths)))
        labels = _labels_of(prepared, span)
        rated = round(report.rated * size / max(1, len(lengths)))
        prompts = prepared.prompt_lengths[span] if task.mismatches else None
        sizes = part, part * share
        counts.append(SourceCount(records, size, source.weight * size, *sizes, labels, rated, prompts))
    overlong = report.dropped.get(DROPPED["overlong"], 0) / max(1, report.records)
    kept = tuple(count for count in mixed(counts, settings) if len(count.lengths))
    return Counted(kept, None, overlong, seen=PreparedBeginnings(prepared))


def _labels_of(prepared: Prepared, part: slice) -> Counter[str]:
    """How many of a part of the examples are good and bad."""
    if not {"good", "bad"} >= prepared.report.labels.keys() or not prepared.report.labels:
        return Counter()
    good = int(np.count_nonzero(prepared.first_labels[part]))
    return Counter({"good": good, "bad": part.stop - part.start - good})


def spread_entries(
    source: SourceConfig, chosen: int, settings: DataConfig, kind: Kind = "sequence"
) -> tuple[int, list[Entry]]:
    """How many records the source holds, about, and `chosen` of them from all over it."""
    files = [] if source.path.startswith(PREFIX) else find_files(source.path)
    size = sum(path.stat().st_size * (UNPACKED if is_packed(path) else 1) for path in files)
    if files and size <= SMALL:
        entries = list(read_entries(source, Tally(settings.on_bad), settings.limit, kind))
        return len(entries), _evenly(entries, chosen)
    if files and all(kind_of(path) == "jsonl" and not is_packed(path) for path in files):
        records, entries = _spread_lines(source, files, chosen, kind)
    else:
        entries = list(islice(read_entries(source, Tally("skip"), kind=kind), FIRST))
        records = _records_in(files, entries, size)
        entries = _evenly(entries, chosen)
    return min(records, settings.limit or records), entries


def _evenly(entries: list[Entry], chosen: int) -> list[Entry]:
    if len(entries) <= chosen:
        return entries
    return [entries[index] for index in np.linspace(0, len(entries) - 1, chosen).astype(int)]


def _spread_lines(source: SourceConfig, files: list[Path], chosen: int, kind: Kind) -> tuple[int, list[Entry]]:
    """Lines from evenly spaced places of large files; bad ones are left to `data check`."""
    total = sum(path.stat().st_size for path in files)
    taken, count = 0, 0
    found: list[Entry] = []
    for path in files:
        size = path.stat().st_size
        lines = [line for line in _lines_of(path, max(2, chosen * size // total)) if line.strip()]
        taken, count = taken + sum(map(len, lines)), count + len(lines)
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / path.name
            part.write_bytes(b"".join(line.rstrip(b"\n") + b"\n" for line in lines))
            if lines:
                entries = read_entries(source.model_copy(update={"path": str(part)}), Tally("skip"), kind=kind)
                found += [replace(entry, file=str(path), line=SOMEWHERE) for entry in entries]
    return (round(total / (taken / count)) if count else 0), found


def _lines_of(path: Path, count: int) -> Iterator[bytes]:
    """The lines that follow `count` evenly spaced places of a file."""
    with path.open("rb") as file:
        for offset in np.linspace(0, path.stat().st_size, count, endpoint=False).astype(int):
            file.seek(int(offset))
            if offset:
                file.readline()
            yield file.readline()


def _records_in(files: list[Path], entries: list[Entry], size: float) -> int:
    """Rows of parquet files as they say; else as many as the size allows at the entries' mean size."""
    if files and all(kind_of(path) == "parquet" for path in files):
        return sum(row_group_ends(str(path))[-1] for path in files)
    if len(entries) < FIRST or not files:
        return len(entries)
    return max(len(entries), round(size / (sum(len(str(entry)) for entry in entries) / len(entries))))


def _tokenise(records: int, entries: Sequence[Entry], weight: float, survey: Survey) -> SourceCount:
    """The count of one source. Raises the bad records among its entries, unless they are skipped."""
    lengths, scored, prompts, examples = [], [], [], 0.0
    seen: list[Beginning] = []
    labels, rated = survey.judged.copy(), survey.rated
    for entry, share in _shortened(entries):
        made = survey.examples(entry)
        lengths += [len(example) for example in made]
        scored += [int(np.count_nonzero(example.weights)) for example in made]
        prompts += [example.cuts[0] for example in made if survey.task.mismatches]
        examples += len(made) * share
        seen += map(beginning, made)
    if survey.tally.failing:
        survey.tally.end_file(entries[0].file)
    pool = records * examples / max(1, len(entries))
    sizes = np.array(lengths, dtype=np.int64), np.array(scored)
    heads = np.array(prompts, dtype=np.int64) if survey.task.mismatches else None
    judged = survey.judged - labels
    return SourceCount(records, pool, weight * pool, *sizes, judged, survey.rated - rated, heads, tuple(seen))


def _shortened(entries: Sequence[Entry]) -> Iterator[tuple[Entry, float]]:
    """Long documents by their beginning, with how often it fits into the whole."""
    for entry in entries:
        if isinstance(entry, Document) and len(entry.text) > CHARACTERS:
            yield replace(entry, text=entry.text[:CHARACTERS]), len(entry.text) / CHARACTERS
        else:
            yield entry, 1.0
