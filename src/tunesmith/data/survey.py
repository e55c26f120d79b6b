"""One pass of encoding, with everything that was dropped, cut or odd counted and told as diagnostics."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tunesmith.data.chat import Entry, encode_record
from tunesmith.data.config import DataConfig
from tunesmith.data.content import kind_of
from tunesmith.data.encoding import quoted
from tunesmith.data.judgements import prompt_hash
from tunesmith.data.outcome import IMITATION
from tunesmith.data.tally import Tally
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import DataError, Diagnostic, Fix, Where
from tunesmith.types import Example, Pair, Task

SHOWN_PLACES = 5
COVERED = 0.995  # share of records that a proposed max_length must cover

DROPPED = {
    "overlong": "longer than data.max_length",
    "zero_trained": "no trained token",
    "identical": "answers that do not differ",
}
MOST_IDENTICAL = 0.05  # share of records without a difference that is an error


class Survey:
    """Encodes record after record; `tally` is the reader's, so that bad records are counted and raised in one place.

    `dropped` counts records by reason, `notes` what `Outcome` notes, `lengths` holds each record's tokens before the
    over-length policy, `shared` the tokens of prompts that several answers hang from, `saved` those that are therefore
    not computed again, `judged` how often feedback says good and bad, or each class stands, `rated` how many examples
    are of pairs that say by how much the chosen answer is better.
    """

    def __init__(
        self, tokenizer: Tokenizer, settings: DataConfig, tally: Tally | None = None, task: Task = IMITATION
    ) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.task = task
        self.tally = tally or Tally(settings.on_bad)
        self.records = 0
        self.tokens = 0
        self.trained_tokens = 0
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.lengths = array("i")
        self.examples_kept = 0
        self.answers = 0
        self.shared = 0
        self.saved = 0
        self.judged: Counter[str] = Counter()
        self._places: dict[str, list[Where]] = {}
        self._first: Where | None = None
        self._prompt: int | None = None  # of the first example
        self._prompts_differ = False
        self.rated = 0

    def examples(self, entry: Entry) -> list[Example]:
        """The examples of one record; a record that cannot be encoded goes to the tally."""
        try:
            outcome = encode_record(entry, self.tokenizer, self.settings, self.task)
        except DataError as error:
            self.tally.refuse(error.diagnostic, error.diagnostic.code)
            return []
        self.records += 1
        self._first = self._first or Where(entry.file, entry.line)
        self.lengths.append(outcome.length)
        self.notes += outcome.notes
        for note in outcome.notes:
            self._remember(note, entry)
        if outcome.dropped is not None:
            self.dropped[DROPPED[outcome.dropped]] += 1
            if outcome.dropped not in outcome.notes:
                self._remember(outcome.dropped, entry)
        self.tokens += sum(map(len, outcome.examples))
        self.trained_tokens += sum(int(np.count_nonzero(example.weights)) for example in outcome.examples)
        self.examples_kept += len(outcome.examples)
        for example in outcome.examples:
            self._count_answers(example)
        self.rated += len(outcome.examples) if isinstance(entry, Pair) and entry.margin is not None else 0
        return outcome.examples

    def _count_answers(self, example: Example) -> None:
        if self.task.classes:
            self.judged[self.task.classes[int(example.labels[0])]] += 1
        if not example.cuts:
            return
        self.answers += len(example.cuts)
        self.shared += example.cuts[0]
        self.saved += 0 if example.chained else (len(example.cuts) - 1) * example.cuts[0]
        if self.task.kind == "feedback":
            self.judged["good" if example.labels[0] else "bad"] += 1
            if self.task.mismatches and not self._prompts_differ:
                prompt = prompt_hash(example)
                self._prompt = prompt if self._prompt is None else self._prompt
                self._prompts_differ = prompt != self._prompt

    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """What the user should know of the records that were kept, cut or dropped."""
        found = []
        if self.notes["too_long"]:
            found.append(self._overlong(self.notes["too_long"]))
        zero = self.dropped[DROPPED["zero_trained"]]
        if zero:
            found.append(self._zero_trained(zero))
        if self.notes["identical"]:
            found.append(self._identical(self.notes["identical"]))
        if self.task.kind == "feedback" and len(self.judged) == 1:
            found.append(self._one_class(self.judged.total(), next(iter(self.judged))))
        if self._prompt is not None and not self._prompts_differ:
            found.append(self._one_prompt(self.judged.total()))
        found += [self._noted(*row) for row in _NOTES if self.notes[row[0]]]
        return tuple(found)

    def _zero_trained(self, count: int) -> Diagnostic:
        first = self._places["zero_trained"][0]
        return Diagnostic(
            "E031",
            f"the loss would see no token in {count:,} of {self.records:,} records",
            "error" if self.settings.on_bad == "error" else "warning",
            where=first,
            evidence=(self._told("zero_trained", count), f"data.train_on is {self.settings.train_on}"),
            fixes=(
                Fix("leave them out and count them", {"data.on_bad": "skip"}),
                Fix("train every answer", {"data.train_on": "all_assistant"}),
                Fix("look at one", command="tunesmith data preview RECIPE"),
            ),
        )

    def _identical(self, count: int) -> Diagnostic:
        """W211 up to 5 % of the records, E215 above that (and never when they are left out)."""
        left_out = self.settings.on_bad == "skip"
        failing = count > MOST_IDENTICAL * self.records and not left_out
        what = "rank all answers alike" if self.task.kind == "ranking" else "have two equal answers"
        fate = "; they are left out" if left_out else ": nothing can be learned from them"
        path = Path(self._places["identical"][0].file or "")
        skip = Fix("leave them out and count them: data.on_bad=skip", {"data.on_bad": "skip"})
        to = "rankings" if self.task.kind == "ranking" else "pairs"
        command = "data fix {} --drop-identical" if kind_of(path) == "jsonl" else f"data convert {{}} --to {to}"
        fix = Fix("make a copy without them", command=f"tunesmith {command.format(quoted(path))}")
        return Diagnostic(
            "E215" if failing else "W211",
            f"{count:,} of {self.records:,} records {what}{fate}",
            "error" if failing else "warning",
            where=self._places["identical"][0],
            evidence=(self._told("identical", count),),
            fixes=(fix,) if left_out else (skip, fix),
        )

    def _one_class(self, count: int, word: str) -> Diagnostic:
        other = "bad" if word == "good" else "good"
        return Diagnostic(
            "E216",
            f"all {count:,} answers are {word}: there is nothing {other} to tell them from",
            where=self._first,
            fixes=(
                Fix(f"add answers that are {other}"),
                Fix("learn to say the answers instead", {"objective": "sft"}),
                Fix("check which values label holds: true (good) and false (bad)"),
            ),
        )

    def _one_prompt(self, count: int) -> Diagnostic:
        path = Path((self._first or Where()).file or "FILE")
        return Diagnostic(
            "E280",
            f"all {count:,} answers are to one prompt: KTO compares prompts with answers to other prompts",
            where=self._first,
            fixes=(
                Fix("make pairs of good and bad answers", command=f"tunesmith data convert {quoted(path)} --to pairs"),
                Fix("add records with other prompts"),
                Fix("learn without other prompts", {"objective": "apo_zero_unpaired"}),
            ),
        )

    def _overlong(self, count: int) -> Diagnostic:
        limit, policy = self.settings.max_length, self.settings.overlong
        fates = {"drop": "dropped", "cut_turns": "cut by whole turns, or dropped", "split": "split, or dropped"}
        fate = fates.get(policy, "refused")
        lost = self.dropped[DROPPED["overlong"]]
        evidence = [self._told("too_long", count), f"{lost:,} records are lost altogether"]
        if self.notes["turns_lost"]:
            evidence.append(f"{self.notes['turns_lost']:,} answers are lost in records that stay")
        longer, share = covering_length(self.lengths, limit)
        fixes = [Fix(f"data.max_length={longer}", {"data.max_length": longer}, effect=f"covers {share:.1%} of records")]
        if policy == "drop":
            fixes.append(Fix("data.overlong=cut_turns", {"data.overlong": "cut_turns"}, effect="keeps the last turns"))
        return Diagnostic(
            "W062",
            f"{count:,} of {self.records:,} records are longer than {limit:,} tokens and are {fate}",
            "warning",
            where=self._places["too_long"][0],
            evidence=tuple(evidence),
            fixes=tuple(fixes),
        )

    def _noted(self, note: str, code: str, message: str, fix: Fix) -> Diagnostic:
        text = message.format(count=f"{self.notes[note]:,}")
        told = self._told(note, self.notes[note])
        return Diagnostic(code, text, "warning", where=self._places[note][0], evidence=(told,), fixes=(fix,))

    def _told(self, note: str, count: int) -> str:
        places = self._places[note]
        lines = ", ".join(str(place.line) for place in places)
        return f"first in {places[0].file}, lines {lines}" + (" ..." if count > len(places) else "")

    def _remember(self, note: str, entry: Entry) -> None:
        places = self._places.setdefault(note, [])
        if len(places) < SHOWN_PLACES:
            places.append(Where(entry.file, entry.line))


_PREVIEW = Fix("look at the tokens", command="tunesmith data preview RECIPE")
_NOTES = (
    ("shielded", "W068", "{count} records hold control tokens in their text; they are kept as plain text", _PREVIEW),
    (
        "unstopped",
        "W061",
        "{count} trained turns end without an end-of-text token: the model will not learn to stop there",
        Fix("name the turn's last token in generation_config.json (\"eos_token_id\"), or use the model's own template"),
    ),
    (
        "unrolled",
        "W066",
        "the chat template rewrites earlier answers, so {count} extra examples train each in the form it is written in",
        Fix("train on the last answer only", {"data.train_on": "last_assistant"}, effect="fewer tokens per record"),
    ),
    (
        "opened",
        "W067",
        "the generation prompt opens what {count} answers lack (such as <think>): asking and training differ",
        Fix("write the thoughts into the answers, or use a chat template without them"),
    ),
    (
        "straddled",
        "W071",
        "{count} answers begin inside a token of their prompt; that token is not trained",
        Fix("remove white space from the beginning of the answers"),
    ),
)


def covering_length(lengths: Sequence[int], limit: int) -> tuple[int, float]:
    """A round max_length above `limit` that covers 99.5 % of records or more, and the share it covers."""
    values = np.asarray(lengths)
    wanted = max(int(np.quantile(values, COVERED, method="higher")), int(values[values > limit].min()))
    rounded = rounded_up(wanted)
    return rounded, float(np.mean(values <= rounded))


def rounded_up(tokens: int) -> int:
    """The next number that reads well in a recipe."""
    step = 256 if tokens > 512 else 16
    return -(-tokens // step) * step
