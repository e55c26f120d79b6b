"""Files of answers: several to each prompt, in no order; written once and whole, read back for labelling."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tunesmith.data.config import SourceConfig
from tunesmith.data.entries import alike
from tunesmith.data.fields import Fields
from tunesmith.data.formats import convert, form_of, recognise
from tunesmith.data.sources import read_source
from tunesmith.data.tally import Tally
from tunesmith.errors import DataError, Fix, UsageError, Where
from tunesmith.rollout.journal import Journal
from tunesmith.rollout.prompts import Prompt, text_of, to_prompt
from tunesmith.track.files import read_object, replace_text, to_json
from tunesmith.track.reader import Row, read_lines
from tunesmith.types import Kind, Pair, Ranking, Record


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt and its answers; `finished` is False where an answer was cut by its limit."""

    prompt: Prompt
    answers: tuple[str, ...]
    finished: tuple[bool, ...]

    @property
    def place(self) -> str:
        return f"{self.prompt.file}:{self.prompt.line}"


class AnswerFile:
    """`path` with its side file of settings: complete or absent, and continued only under the same settings.

    `done` holds the rows of earlier attempts by the index of their prompt. UsageError E260: another file stands there,
    or it was written with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = json.loads(to_json(dict(settings)))
        self.side = path.with_name(f"{path.name}.settings.json")
        self._journal = Journal(path.with_name(f"{path.name}.partial"))
        try:
            self._check()
            old = [] if not path.exists() else list(read_lines(path))
            self.done: dict[int, Row] = {row["index"]: row for row in (*old, *self._journal.rows) if _is_whole(row)}
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._journal.end()

    def begin(self, prompts: Sequence[Prompt]) -> list[int]:
        """The prompts that have no row yet; E260 when a row answers another prompt than the one of its index."""
        for index, prompt in enumerate(prompts):
            row = self.done.get(index)
            if row is not None and row["prompt"] != _plain(prompt)["prompt"]:
                raise self._refusal("it answers other prompts", [f"prompt {index + 1} differs: {prompt.asked[:80]!r}"])
        replace_text(self.side, to_json(self.settings, indent=1) + "\n")
        return [index for index in range(len(prompts)) if index not in self.done]

    def write(self, index: int, row: Row) -> None:
        self.done[index] = {"index": index, **row}
        self._journal.write(self.done[index])

    def finish(self, indices: Iterable[int]) -> list[Row]:
        """Put the rows of `indices` in their place, all at once; the partial file goes."""
        rows = [self.done[index] for index in indices]
        replace_text(self.path, "".join(to_json(row) + "\n" for row in rows))
        self._journal.path.unlink(missing_ok=True)
        return rows

    def _check(self) -> None:
        held = self.path.exists() or self._journal.rows
        if not held:
            return
        if not self.side.exists():
            raise self._refusal("it was not written by sampling", [f"there is no {self.side.name} beside it"])
        old = read_object(self.side)
        changed = [key for key in sorted(old.keys() | self.settings.keys()) if old.get(key) != self.settings.get(key)]
        if changed:
            told = [f"{key}: {old.get(key)!r} -> {self.settings.get(key)!r}" for key in changed]
            raise self._refusal("it was written with other settings", told)

    def _refusal(self, reason: str, evidence: list[str]) -> UsageError:
        fixes = [Fix("write to another file: -o FILE"), f"or delete {self.path} and what stands beside it"]
        message = f"{self.path.name} cannot be continued: {reason}"
        return UsageError("E260", message, where=Where(str(self.path)), evidence=evidence[:10], fixes=fixes)


def read_answers(path: str, tally: Tally | None = None) -> list[Answered]:
    """Every record of a file with several answers to a prompt: what sampling wrote, pairs, or rankings.

    DataError E263 for a record without answers.
    """
    source = SourceConfig(path=path)
    tally = tally or Tally()
    found: list[Answered] = []
    for record in read_source(source, tally):
        try:
            found.append(to_answered(record, source))
        except DataError as error:
            tally.refuse(error.diagnostic, alike(error))
    return found


def to_answered(record: Record, source: SourceConfig) -> Answered:
    answers = record.value.get("answers")
    if isinstance(answers, list) and answers and all(isinstance(text, str) for text in answers):
        finished = record.value.get("finished", [True] * len(answers))
        if not isinstance(finished, list) or len(finished) != len(answers):
            raise _no_answers(record, "finished", "finished must say of each answer whether it came to its end")
        return Answered(to_prompt(record, source, "auto"), tuple(answers), tuple(map(bool, finished)))
    kind: Kind = "pair" if form_of(Fields(record, source.columns), "pair") is not None else "ranking"
    if kind == "ranking" and form_of(Fields(record, source.columns), "ranking") is None:
        raise _no_answers(record, "answers", "the record has no answers to compare")
    entry = convert(record, recognise(record, source, kind), source.columns, kind)
    if isinstance(entry, Pair):
        texts = (text_of(entry.chosen), text_of(entry.rejected))
    else:
        assert isinstance(entry, Ranking)
        texts = tuple(text_of(turns) for turns in entry.answers)
    prompt = Prompt(entry.prompt, entry.file, entry.line, entry.tools)
    return Answered(prompt, texts, (True,) * len(texts))


def _no_answers(record: Record, field: str, message: str) -> DataError:
    where = Where(record.file, record.line, field=field)
    fix = Fix("make some", command="tunesmith sample MODEL --prompts FILE -n 4 -o answers.jsonl")
    return DataError("E263", message, where=where, fixes=[fix])


def _plain(prompt: Prompt) -> Row:
    return json.loads(to_json(prompt.to_json()))


def _is_whole(row: Row) -> bool:
    return isinstance(row.get("index"), int) and isinstance(row.get("answers"), list) and "prompt" in row
