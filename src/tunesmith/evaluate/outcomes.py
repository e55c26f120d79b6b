"""Marked answers become records to learn from: pairs, rankings, feedback, or the best answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.tokenizer import to_json as message_json
from tunesmith.errors import DataError, Where
from tunesmith.evaluate.labellers import Labeller, Marks, Progress, answer_turns
from tunesmith.rollout.answers import Answered
from tunesmith.rollout.prompts import Prompt
from tunesmith.track.files import disk_error, replace_text, to_json
from tunesmith.types import Turns

To = Literal["pairs", "rankings", "feedback", "sft"]
Unfinished = Literal["drop", "keep"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What becomes of marks. `min_margin`: best and worst are at least so far apart; `threshold`: the least good mark.

    Without a threshold the labeller's own pass mark decides, if it has one.
    """

    to: To = "pairs"
    min_margin: float = 0.0
    threshold: float | None = None
    unfinished: Unfinished = "drop"  # answers that were cut by their limit


@dataclass(frozen=True, slots=True)
class Labelled:
    """The records, and what was not made into one. `ties`, `left_out` count prompts, `dropped` answers, by reason.

    Marks are means over prompts (one half where answers are only compared). `longer` is the share of prompts whose best
    answer is longer than the worst, among those where they differ in mark and in length.
    """

    records: list[dict[str, Any]]
    prompts: int
    ties: int
    left_out: dict[str, int]
    dropped: dict[str, int]
    mean_mark: float | None
    best_mark: float | None
    longer: float | None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(replace(self, records=[])), "records": len(self.records)}


def label(
    rows: Sequence[Answered], labeller: Labeller, choice: Choice, on_progress: Progress | None = None
) -> Labelled:
    """Mark every answer that can be used, and make records of the marks."""
    dropped: Counter[str] = Counter()
    usable = [usable_answers(row, choice, dropped) for row in rows]
    threshold = labeller.pass_mark if choice.threshold is None else choice.threshold
    choice = replace(choice, threshold=threshold)
    compared = [row for row in usable if len(row.answers) >= fewest(choice)]
    left_out = Counter({"too few answers": len(usable) - len(compared)})
    found: list[tuple[Answered, Marks]] = []
    for row, marks in zip(compared, labeller.mark(compared, on_progress), strict=True):
        if marks is None:
            left_out["not looked at"] += 1
        else:
            found.append((row, marks))
    records: list[dict[str, Any]] = []
    for row, marks in found:
        made = records_of(row, marks, choice)
        if isinstance(made, str):
            left_out[made] += 1
        else:
            records += made
    ties = left_out.pop("tie", 0)
    reasons = {reason: count for reason, count in left_out.items() if count}
    means = [sum(marks.scores) / len(marks.scores) for _, marks in found]
    bests = [max(marks.scores) for _, marks in found]
    return Labelled(
        records, len(rows), ties, reasons, dict(dropped), average(means), average(bests), longer_share(found)
    )


def usable_answers(row: Answered, choice: Choice, dropped: Counter[str]) -> Answered:
    """The row without answers that say nothing, and without unfinished ones unless they are kept."""
    kept: list[int] = []
    for at, (text, finished) in enumerate(zip(row.answers, row.finished, strict=True)):
        reason = "empty" if not text.strip() else "unfinished" if not finished and choice.unfinished == "drop" else None
        if reason is None:
            kept.append(at)
        else:
            dropped[reason] += 1
    return Answered(row.prompt, tuple(row.answers[at] for at in kept), tuple(row.finished[at] for at in kept))


def fewest(choice: Choice) -> int:
    """How many answers a prompt needs; a threshold judges one by itself."""
    alone = choice.to == "sft" or (choice.to == "feedback" and choice.threshold is not None)
    return 1 if alone else 2


def records_of(row: Answered, marks: Marks, choice: Choice) -> list[dict[str, Any]] | str:
    """The records of one prompt, or why there are none."""
    scores = marks.scores
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    margin = scores[best] - scores[worst]
    if choice.to == "sft":
        if marks.all_bad or (choice.threshold is not None and scores[best] < choice.threshold):
            return "no good answer"
        return [{**about(row.prompt), "completion": said(row, best)}]
    if choice.to == "feedback" and (choice.threshold is not None or marks.all_bad):
        return [
            {**about(row.prompt), "completion": said(row, at), "label": not marks.all_bad and is_good(score, choice)}
            for at, score in enumerate(scores)
        ]
    if marks.all_bad:
        return "all bad"
    if margin == 0:
        return "tie"
    if margin < choice.min_margin:
        return "too close"
    if choice.to == "feedback":
        return [{**about(row.prompt), "completion": said(row, at), "label": at == best} for at in (best, worst)]
    if choice.to == "rankings":
        order = sorted(range(len(scores)), key=lambda at: -scores[at])
        answers = [said(row, at) for at in order]
        return [{**about(row.prompt), "answers": answers, "scores": [scores[at] for at in order]}]
    pair = {"chosen": said(row, best), "rejected": said(row, worst)}
    return [{**about(row.prompt), **pair, "score_chosen": scores[best], "score_rejected": scores[worst]}]


def is_good(score: float, choice: Choice) -> bool:
    return choice.threshold is not None and score >= choice.threshold


def about(prompt: Prompt) -> dict[str, Any]:
    return {name: value for name, value in prompt.to_json().items() if name != "reference"}


def said(row: Answered, at: int) -> Any:
    """An answer as a record writes it: a text, or a list of turns."""
    turns: Turns = answer_turns(row.prompt, row.answers[at])
    return turns if isinstance(turns, str) else [message_json(message) for message in turns]


def longer_share(found: Sequence[tuple[Answered, Marks]]) -> float | None:
    """Among prompts whose best and worst answers differ in mark and in length: how often the best is longer."""
    hits: list[float] = []
    for row, marks in found:
        best = row.answers[marks.scores.index(max(marks.scores))]
        worst = row.answers[marks.scores.index(min(marks.scores))]
        if max(marks.scores) > min(marks.scores) and len(best) != len(worst):
            hits.append(float(len(best) > len(worst)))
    return average(hits)


def average(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def write_records(found: Labelled, out: Path, source: str) -> None:
    """Write the records as jsonl, all at once; DataError E264 when there are none."""
    if not found.records:
        reasons = {"a tie": found.ties, **found.left_out, **{f"{why} answers": n for why, n in found.dropped.items()}}
        raise DataError(
            "E264",
            f"no record came out of {found.prompts} prompts",
            where=Where(source),
            evidence=[f"{count}: {reason}" for reason, count in reasons.items() if count],
            fixes=["sample more answers per prompt, or at a higher temperature", "look at the reasons above"],
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out.parent) from error
    replace_text(out, "".join(to_json(record) + "\n" for record in found.records))
