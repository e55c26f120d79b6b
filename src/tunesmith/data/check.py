"""`tunesmith data check`: everything about the data that could spoil a run, each finding with its fix."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from tunesmith.data.config import GENERAL_EVAL, DataConfig, SourceConfig
from tunesmith.data.contrast import Contrast
from tunesmith.data.entries import Entry, read_entries
from tunesmith.data.outcome import IMITATION
from tunesmith.data.probes import check_template
from tunesmith.data.savings import Spread
from tunesmith.data.survey import SHOWN_PLACES, Survey
from tunesmith.data.tally import Tally
from tunesmith.data.texts import is_chat, texts_of
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import BadInput, DataError, Diagnostic, Fix, Where
from tunesmith.types import Example, Task

PERCENTILES = (5, 25, 50, 75, 95, 99, 100)
UNKNOWN_RATE = 0.001  # share of unknown tokens that is worth a warning
ROUND_TRIPS = 100  # records encoded and decoded again
_MAX_KINDS = 50
_MOST_LABELS = 20  # rows of the table

Progress = Callable[[int], None]


@dataclass(slots=True)
class Epoch:
    """One pass over a set, each source as often as its weight says; `rated` counts examples of rated pairs."""

    examples: float = 0.0
    tokens: float = 0.0
    rated: float = 0.0
    labels: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SetReport:
    """Counts of the training or the evaluation set; `lengths` maps percentile to tokens before the length policy.

    `answers` compares the answers of records that judge them, `labels` counts good and bad, or the classes.
    """

    name: str
    records: int
    bad: int
    examples: int
    tokens: int
    trained_tokens: int
    dropped: dict[str, int]
    notes: dict[str, int]
    lengths: dict[str, int]
    duplicates: int
    unknown_rate: float
    answers: dict[str, float] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    epoch: Epoch = field(default_factory=Epoch)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check_data` found; it failed when any finding is an error."""

    sets: tuple[SetReport, ...]
    findings: tuple[Diagnostic, ...]
    overlap: int = 0
    prompt_overlap: int = 0

    @property
    def failed(self) -> bool:
        return any(finding.level == "error" for finding in self.findings)

    def with_findings(self, more: Iterable[Diagnostic]) -> CheckReport:
        """The report with what the recipe, not the data alone, makes a finding."""
        return replace(self, findings=_distinct([*self.findings, *more]))

    def to_json(self) -> dict[str, Any]:
        return {
            "sets": [asdict(part) for part in self.sets],
            "overlap": self.overlap,
            "prompt_overlap": self.prompt_overlap,
            "findings": [finding.to_json() for finding in self.findings],
        }

    def rows(self) -> list[tuple[str, ...]]:
        """The counts as a table: a row of headings, then one row per count."""
        table: list[tuple[str, ...]] = [("", *(part.name for part in self.sets))]
        for name in ("records", "bad", "examples", "tokens", "trained_tokens", "duplicates"):
            table.append((name.replace("_", " "), *(f"{asdict(part)[name]:,}" for part in self.sets)))
        for percent in PERCENTILES:
            cells = (f"{part.lengths[str(percent)]:,}" if part.lengths else "-" for part in self.sets)
            table.append((f"length, {percent} % at most", *cells))
        for name in dict.fromkeys(name for part in self.sets for name in part.answers):
            table.append((name, *(_figure(name, part.answers.get(name)) for part in self.sets)))
        for name in list(dict.fromkeys(name for part in self.sets for name in part.labels))[:_MOST_LABELS]:
            table.append((f"label {name}", *(f"{part.labels.get(name, 0):,}" for part in self.sets)))
        return table


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.1%}"
        if name.endswith("longer") or name.startswith("saved")
        else f"{value:,.1f}"
        if name.startswith("mean")
        else f"{value:,.0f}"
    )


@dataclass(slots=True)
class _Pass:
    """What one set shows while it streams by."""

    name: str
    survey: Survey
    tally: _Collector
    contrast: Contrast
    seen: dict[bytes, Where] = field(default_factory=dict)
    duplicates: list[tuple[Where, Where]] = field(default_factory=list)
    chats: int = 0
    examples: int = 0
    repeated: int = 0
    unknown: int = 0
    tried: int = 0
    changed: list[Where] = field(default_factory=list)
    epoch: Epoch = field(default_factory=Epoch)
    beginnings: Spread = field(default_factory=Spread)


class _Collector(Tally):
    """Skips bad records like `on_bad=skip`, and keeps the first of each kind to be told as a finding."""

    def __init__(self) -> None:
        super().__init__("skip")
        self._kinds: dict[str, tuple[Diagnostic, list[int | None]]] = {}
        self._counts: Counter[str] = Counter()

    def refuse(self, diagnostic: Diagnostic, alike: str | None = None) -> None:
        super().refuse(diagnostic, alike)
        kind = alike or diagnostic.code
        self._counts[kind] += 1
        if kind in self._kinds or len(self._kinds) < _MAX_KINDS:
            lines = self._kinds.setdefault(kind, (diagnostic, []))[1]
            if len(lines) < SHOWN_PLACES:
                lines.append(None if diagnostic.where is None else diagnostic.where.line)

    def findings(self, on_bad: str) -> list[Diagnostic]:
        found = []
        for kind, (first, lines) in self._kinds.items():
            count = self._counts[kind]
            told = f"{count:,} records: lines {', '.join(map(str, lines))}" + (" ..." if count > len(lines) else "")
            skip = Fix("leave such records out and count them: data.on_bad=skip", {"data.on_bad": "skip"})
            fixes = first.fixes if on_bad == "skip" else (*first.fixes, skip)
            level = "warning" if on_bad == "skip" else first.level
            found.append(replace(first, level=level, evidence=(*first.evidence, told), fixes=fixes))
        return found


def check_data(
    settings: DataConfig, tokenizer: Tokenizer, progress: Progress | None = None, task: Task = IMITATION
) -> CheckReport:
    """Read and encode all of the data once; findings instead of exceptions for everything the user can mend."""
    findings: list[Diagnostic] = []
    passes: list[_Pass] = []
    for name, sources in settings.sets().items():
        if not sources:
            continue
        tally, own = _Collector(), Task() if name == GENERAL_EVAL else task
        passes.append(_Pass(name, Survey(tokenizer, settings, tally, own), tally, Contrast(own)))
        try:
            for source in sources:
                findings += _read(passes[-1], source, settings, progress)
            if passes[-1].chats:
                found = check_template(tokenizer)
                findings += [one for one in found if task.reads == "logprobs" or one.code not in ("W060", "W061")]
        except BadInput as error:  # the tokenizer or its template cannot be used with any record
            return CheckReport(tuple(map(_report, passes)), _distinct([*findings, *error.diagnostics]))
    unstoppable = any(finding.code in ("W060", "W061") for finding in findings)
    for one in passes:
        told = [finding for finding in one.survey.diagnostics() if not (unstoppable and finding.code == "W061")]
        findings += [*one.tally.findings(settings.on_bad), *one.tally.warnings, *told]
        findings += [*_duplicates(one), *_unknown(one, tokenizer), *_round_trips(one, tokenizer)]
        findings += one.contrast.findings(one.name, one.survey.judged)
        if one.tally.records and not one.examples:
            findings.append(_nothing_left(one, settings.sets()[one.name]))
    compared = [one for one in passes if one.name in ("train", "eval")]
    overlap, leak = _overlap(compared)
    shared, prompt_leak = _prompt_overlap(compared)
    reports = tuple(map(_report, passes))
    return CheckReport(reports, _distinct([*findings, *leak, *prompt_leak]), overlap, shared)


def _read(one: _Pass, source: SourceConfig, settings: DataConfig, progress: Progress | None) -> tuple[Diagnostic, ...]:
    """Stream one source; what ends it early (a missing or damaged file) is returned."""
    survey, epoch = one.survey, one.epoch
    before = one.examples, survey.tokens, survey.rated, survey.judged.copy()
    try:
        for entry in read_entries(source, one.tally, settings.limit, one.survey.task.kind):
            _look(one, entry)
            if progress is not None:
                progress(one.tally.records)
    except DataError as error:
        return error.diagnostics
    epoch.examples += source.weight * (one.examples - before[0])
    epoch.tokens += source.weight * (survey.tokens - before[1])
    epoch.rated += source.weight * (survey.rated - before[2])
    for name, count in (survey.judged - before[3]).items():
        epoch.labels[name] = epoch.labels.get(name, 0.0) + source.weight * count
    return ()


def _look(one: _Pass, entry: Entry) -> None:
    where = Where(entry.file, entry.line)
    one.chats += is_chat(entry)
    examples = one.survey.examples(entry)
    one.examples += len(examples)
    for example in examples:
        one.contrast.look(example, where)
        one.beginnings.add(example)
    if examples:
        key = _key(examples)
        first = one.seen.setdefault(key, where)
        if first is not where:
            one.repeated += 1
            if len(one.duplicates) < SHOWN_PLACES:
                one.duplicates.append((where, first))
    tokenizer = one.survey.tokenizer
    unknown = tokenizer.unk_id
    if unknown is not None and unknown not in (*tokenizer.eos_ids, *tokenizer.start_ids):
        one.unknown += sum(int(np.count_nonzero(example.tokens == unknown)) for example in examples)
    if one.tried < ROUND_TRIPS:
        one.tried += 1
        text = "\n".join(texts_of(entry))[:20_000]
        back = tokenizer.decode(tokenizer.encode(text, specials=False))
        if _plain(back) != _plain(text):
            one.changed.append(where)


def _key(examples: Sequence[Example]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for example in examples:
        digest.update(example.tokens.tobytes())
        digest.update(repr((example.cuts, example.labels)).encode())
    return digest.digest()


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _report(one: _Pass) -> SetReport:
    survey = one.survey
    lengths = np.asarray(survey.lengths)
    shared = one.beginnings.figures() if survey.settings.share_prefixes else {}
    quantiles = np.percentile(lengths, PERCENTILES, method="higher") if len(lengths) else ()
    return SetReport(
        name=one.name,
        records=survey.records,
        bad=one.tally.skipped.total(),
        examples=one.examples,
        tokens=survey.tokens,
        trained_tokens=survey.trained_tokens,
        dropped=dict(survey.dropped),
        notes=dict(survey.notes),
        lengths={str(percent): int(value) for percent, value in zip(PERCENTILES, quantiles, strict=False)},
        duplicates=one.repeated,
        unknown_rate=one.unknown / max(1, survey.tokens),
        answers={**_sharing(one), **shared, **one.contrast.figures()},
        labels=dict(survey.judged),
        epoch=one.epoch,
    )


def _sharing(one: _Pass) -> dict[str, float]:
    """What the answers of a record have in common."""
    survey = one.survey
    if not survey.answers:
        return {}
    saved = {} if survey.saved == 0 else {"saved by shared prompts": survey.saved / (survey.tokens + survey.saved)}
    alike = {} if survey.task.kind not in ("pair", "ranking") else {"answers alike": float(survey.notes["identical"])}
    return {"answers": float(survey.answers), "mean prompt tokens": survey.shared / one.examples, **saved, **alike}


def _duplicates(one: _Pass) -> list[Diagnostic]:
    if not one.repeated:
        return []
    pairs = ", ".join(f"{again} = {first}" for again, first in one.duplicates)
    return [
        Diagnostic(
            "W063",
            f"{one.repeated:,} of {one.survey.records:,} {one.name} records repeat an earlier one token for token",
            "warning",
            where=one.duplicates[0][0],
            evidence=(pairs + (" ..." if one.repeated > len(one.duplicates) else ""),),
            fixes=(Fix("remove the repeated records; a repeated record is learned by heart"),),
        )
    ]


def _overlap(passes: Sequence[_Pass]) -> tuple[int, list[Diagnostic]]:
    if len(passes) < 2:
        return 0, []
    train, held_out = passes
    common = [key for key in held_out.seen if key in train.seen]
    if not common:
        return 0, []
    shown = ", ".join(f"{held_out.seen[key]} = {train.seen[key]}" for key in common[:SHOWN_PLACES])
    leak = Diagnostic(
        "W064",
        f"{len(common):,} of {len(held_out.seen):,} evaluation records are also trained: the evaluation flatters",
        "warning",
        where=held_out.seen[common[0]],
        evidence=(shown + (" ..." if len(common) > SHOWN_PLACES else ""),),
        fixes=(Fix("remove them from data.train or from data.eval"),),
    )
    return len(common), [leak]


def _prompt_overlap(passes: Sequence[_Pass]) -> tuple[int, list[Diagnostic]]:
    """Prompts that are trained and evaluated, be it with other answers."""
    if len(passes) < 2:
        return 0, []
    train, held_out = (one.contrast.prompts for one in passes)
    common = [prompt for prompt in held_out if prompt in train]
    if not common:
        return 0, []
    shown = ", ".join(f"{held_out[prompt]} = {train[prompt]}" for prompt in common[:SHOWN_PLACES])
    leak = Diagnostic(
        "W214",
        f"{len(common):,} of {len(held_out):,} evaluation prompts are also trained, if with other answers: "
        "the evaluation flatters",
        "warning",
        where=held_out[common[0]],
        evidence=(shown + (" ..." if len(common) > SHOWN_PLACES else ""),),
        fixes=(Fix("keep all records of a prompt in the same set"),),
    )
    return len(common), [leak]


def _unknown(one: _Pass, tokenizer: Tokenizer) -> list[Diagnostic]:
    rate = one.unknown / max(1, one.survey.tokens)
    if rate <= UNKNOWN_RATE:
        return []
    token = tokenizer.token_text(tokenizer.unk_id or 0)
    return [
        Diagnostic(
            "W065",
            f"{rate:.1%} of the {one.name} tokens are {token!r}: this tokenizer cannot write the text",
            "warning",
            evidence=(f"{one.unknown:,} of {one.survey.tokens:,} tokens",),
            fixes=(Fix("choose a model whose tokenizer knows the language and signs of the data"),),
        )
    ]


def _round_trips(one: _Pass, tokenizer: Tokenizer) -> list[Diagnostic]:
    if len(one.changed) <= one.tried // 10:
        return []
    return [
        Diagnostic(
            "W074",
            f"{len(one.changed)} of {one.tried} {one.name} records change when they are encoded and decoded again",
            "warning",
            where=one.changed[0],
            evidence=(f"tokenizer: {tokenizer.folder}",),
            fixes=(Fix("check that the tokenizer belongs to the model"),),
        )
    ]


def _nothing_left(one: _Pass, sources: Sequence[SourceConfig]) -> Diagnostic:
    reasons = {**one.tally.skipped, **one.survey.dropped}
    return Diagnostic(
        "E078",
        f"no example is left in the {one.name} set",
        where=Where(", ".join(source.path for source in sources)),
        evidence=tuple(f"{count:,} records: {reason}" for reason, count in reasons.items()),
        fixes=(Fix("look at the findings above: each names its fix"),),
    )


def _distinct(findings: Sequence[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Errors first, each finding once."""
    unique: dict[tuple[str, str, str], Diagnostic] = {}
    for finding in findings:
        unique.setdefault((finding.code, str(finding.where), finding.message), finding)
    return tuple(sorted(unique.values(), key=lambda finding: finding.level != "error"))
