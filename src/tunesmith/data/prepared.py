"""Prepared examples: every record tokenised once, kept in memory-mapped files under a content hash."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import uuid
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tunesmith.data.config import DataConfig, SourceConfig
from tunesmith.data.entries import read_entries
from tunesmith.data.hub import PREFIX
from tunesmith.data.judgements import Judgements, JudgementWriter
from tunesmith.data.outcome import IMITATION
from tunesmith.data.sources import fingerprint_source
from tunesmith.data.survey import DROPPED, Survey
from tunesmith.data.tally import data_error
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import DataError, Fix, Where
from tunesmith.paths import home
from tunesmith.types import Example, Task

VERSION = 2  # raise it when the same records would be prepared differently
Progress = Callable[[int], None]
SEQUENCES = Task()


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """What became of the records; `dropped` counts by reason, `notes` what was cut, split, shielded or identical.

    `prompt_tokens` are those of the prompts that answers hang from, `saved_tokens` those that a computation of every
    answer with its own prompt would add; `labels` counts good and bad, or the classes; `rated` the examples of pairs
    that say by how much the chosen answer is better. `warnings` are lines to show before the training begins.
    """

    records: int
    examples: int
    tokens: int
    trained_tokens: int
    dropped: dict[str, int]
    notes: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    answers: int = 0
    prompt_tokens: int = 0
    saved_tokens: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    rated: int = 0

    @property
    def identical(self) -> int:
        """Records whose answers do not differ, kept or left out."""
        return self.notes.get("identical", 0)


class Prepared:
    """Examples of several sources, read from disk on demand; `bounds[i]:bounds[i + 1]` belong to source i.

    `judgements` is None for plain sequences.
    """

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        self.folder = folder
        self.key: str = about["key"]
        self.files: list[str] = about["files"]
        self.bounds: list[int] = about["bounds"]
        self.report = PrepareReport(**about["report"])
        self.offsets = np.load(folder / "offsets.npy", mmap_mode="r", allow_pickle=False)
        self.places = np.load(folder / "places.npy", mmap_mode="r", allow_pickle=False)
        self.tokens = np.memmap(folder / "tokens.bin", dtype=np.int32, mode="r")
        self.weights = np.memmap(folder / "weights.bin", dtype=np.float32, mode="r")
        self.chained: bool = about.get("chained", False)
        self.judgements = Judgements(folder) if about.get("judged", False) else None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Example:
        span = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        file, line = self.places[index].tolist()
        cuts, labels = ((), ()) if self.judgements is None else self.judgements.of(index)
        tokens, weights = np.asarray(self.tokens[span]), np.asarray(self.weights[span])
        return Example(tokens, weights, self.files[file], line, cuts, labels, self.chained)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets).astype(np.int32)

    @property
    def first_labels(self) -> np.ndarray:
        """The first label of every example, float64 (N,): good or bad, a class, a rating."""
        assert self.judgements is not None, "plain sequences have no labels"
        return self.judgements.first_labels

    @property
    def prompt_lengths(self) -> np.ndarray:
        """Tokens of the prompt of every example, int32 (N,)."""
        assert self.judgements is not None, "plain sequences have no prompts of their own"
        return self.judgements.first_cuts

    @property
    def prompt_hashes(self) -> np.ndarray:
        """uint64 (N,); different where the prompts differ in a token."""
        assert self.judgements is not None, "plain sequences have no prompts of their own"
        return self.judgements.prompt_hashes


def prepare(
    sources: Sequence[SourceConfig],
    settings: DataConfig,
    tokenizer: Tokenizer,
    progress: Progress | None = None,
    task: Task = SEQUENCES,
) -> Prepared:
    """The examples of `sources`, from the cache when the same bytes were prepared with the same settings before."""
    key = prepare_key(sources, settings, tokenizer, task)
    folder = prepared_folder(sources, key)
    if not is_whole(folder):
        shutil.rmtree(folder, ignore_errors=True)
        write_prepared(folder, key, Wanted(tuple(sources), settings, tokenizer, task, progress))
    return Prepared(folder)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is prepared, and who is told how far it is."""

    sources: tuple[SourceConfig, ...]
    settings: DataConfig
    tokenizer: Tokenizer
    task: Task
    progress: Progress | None = None


def is_whole(folder: Path) -> bool:
    """Whether an earlier preparation is there with all its bytes."""
    if not (folder / "about.json").exists():
        return False
    try:
        offsets = np.load(folder / "offsets.npy", allow_pickle=False)
        sizes = {(folder / name).stat().st_size for name in ("tokens.bin", "weights.bin")}
        judged = json.loads((folder / "about.json").read_text(encoding="utf-8")).get("judged", False)
        whole = not judged or Judgements(folder).is_whole(len(offsets) - 1)
    except (OSError, ValueError):
        return False
    return whole and sizes == {4 * int(offsets[-1])}


def prepare_key(
    sources: Sequence[SourceConfig], settings: DataConfig, tokenizer: Tokenizer, task: Task = IMITATION
) -> str:
    """sha256 over file bytes, shapes, template, tokenizer, task and every setting that changes tokens or weights.

    Where the files lie is no part of it: a run goes on when its data was named by another path.
    """
    shaping = settings.model_dump(mode="json", exclude={"train", "eval", "general", "shuffle", "share_prefixes"})
    parts = [VERSION, code_hash(), tokenizer.fingerprint(), shaping, asdict(task)]
    for source in sources:
        parts.append([source.model_dump(mode="json", exclude={"weight", "path"}), fingerprint_source(source)])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def prepared_folder(sources: Sequence[SourceConfig], key: str) -> Path:
    """Where prepared data is kept: one folder for each place of the files, whose names the examples hold."""
    local = (source.path for source in sources if not source.path.startswith(PREFIX))
    paths = [str(Path(path).expanduser().absolute()) for path in local]
    return home() / "prepared" / hashlib.sha256(json.dumps([key, paths]).encode()).hexdigest()


@functools.cache
def code_hash() -> str:
    """Hash of the code between record and example, so that a changed rule never meets data prepared by the old one."""
    total = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()


def write_prepared(folder: Path, key: str, wanted: Wanted) -> None:
    """Stage the files beside their final place and rename, so that a half-written folder is never read."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = folder.with_name(f".tmp-{uuid.uuid4().hex}")
    stage.mkdir()
    try:
        about = stream_examples(stage, wanted)
        (stage / "about.json").write_text(json.dumps({"key": key, **about}), encoding="utf-8")
        os.replace(stage, folder)
    except OSError:
        if not (folder / "about.json").exists():  # not another process that was faster
            raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def stream_examples(stage: Path, wanted: Wanted) -> dict[str, Any]:
    """Write tokens and weights as they come; memory holds only offsets, places and what is judged."""
    survey = Survey(wanted.tokenizer, wanted.settings, task=wanted.task)
    writer = ExampleWriter()
    judged = JudgementWriter() if wanted.task.kind != "sequence" else None
    with (stage / "tokens.bin").open("wb") as tokens, (stage / "weights.bin").open("wb") as weights:
        for source in wanted.sources:
            for entry in read_entries(source, survey.tally, wanted.settings.limit, wanted.task.kind):
                for example in survey.examples(entry):
                    writer.append(tokens, weights, example)
                    if judged is not None:
                        judged.append(example)
                if wanted.progress is not None:
                    wanted.progress(survey.records)
            writer.bounds.append(len(writer.lines))
    report = report_of(survey, wanted)
    np.save(stage / "offsets.npy", np.asarray(writer.offsets))
    np.save(stage / "places.npy", np.stack([writer.numbers, writer.lines], axis=1))
    if judged is not None:
        judged.save(stage)
    return {
        "files": list(writer.files),
        "bounds": writer.bounds,
        "judged": judged is not None,
        "chained": wanted.task.kind == "process",
        "report": asdict(report),
    }


def report_of(survey: Survey, wanted: Wanted) -> PrepareReport:
    """What the pass counted. Raises what it found that spoils a run, and E078 when no example is left."""
    dropped = {**survey.tally.skipped, **survey.dropped}
    found = (*survey.tally.warnings, *survey.diagnostics())
    for diagnostic in found:
        if diagnostic.level == "error":
            raise data_error(diagnostic)
    if not survey.examples_kept:
        raise nothing_left(wanted.sources, wanted.settings, dropped)
    return PrepareReport(
        records=survey.tally.records,
        examples=survey.examples_kept,
        tokens=survey.tokens,
        trained_tokens=survey.trained_tokens,
        dropped=dropped,
        notes=dict(survey.notes),
        warnings=(*map(str, found), *_balance(survey, wanted)),
        answers=survey.answers,
        prompt_tokens=survey.shared,
        saved_tokens=survey.saved,
        labels=dict(survey.judged),
        rated=survey.rated,
    )


def _balance(survey: Survey, wanted: Wanted) -> list[str]:
    """How many answers are good and bad, as a line."""
    if wanted.task.kind != "feedback":
        return []
    files = ", ".join(source.path for source in wanted.sources)
    return [f"good {survey.judged['good']:,}, bad {survey.judged['bad']:,} in {files}"]


class ExampleWriter:
    """Appends examples to the two data files and remembers where each one stands."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self.offsets = array("q", [0])
        self.numbers = array("q")  # of the file
        self.lines = array("q")
        self.bounds = [0]

    def append(self, tokens: BinaryIO, weights: BinaryIO, example: Example) -> None:
        tokens.write(np.ascontiguousarray(example.tokens, dtype=np.int32).data)
        weights.write(np.ascontiguousarray(example.weights, dtype=np.float32).data)
        self.offsets.append(self.offsets[-1] + len(example))
        self.numbers.append(self.files.setdefault(example.file, len(self.files)))
        self.lines.append(example.line)


def nothing_left(sources: Sequence[SourceConfig], settings: DataConfig, dropped: dict[str, int]) -> DataError:
    fixes = [Fix("look at the records", command="tunesmith data check RECIPE")]
    if DROPPED["overlong"] in dropped:
        longer = 2 * settings.max_length
        fixes.insert(0, Fix(f"data.max_length={longer}", {"data.max_length": longer}))
    return DataError(
        "E078",
        "no example is left to train on",
        where=Where(file=", ".join(source.path for source in sources)),
        evidence=[f"{count:,} dropped: {reason}" for reason, count in dropped.items()],
        fixes=fixes,
    )
