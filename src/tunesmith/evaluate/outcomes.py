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
UNFINISHED = "too few finished answers"
Unfinished = Literal["worst", "drop", "keep"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What becomes of marks. `min_margin`: best and worst are at least so far apart; `threshold`: the least good mark.

    Without a threshold the labeller's own pass mark decides, if it has one.
    """

    to: To = "pairs"
    min_margin: float = 0.0
    threshold: float | None = None
    unfinished: Unfinished = "worst"  # answers that were cut by their limit


@dataclass(frozen=True, slots=True)
class Labelled:
    """The records, and what was not made into one. `ties`, `left_out` count prompts, `dropped` answers, by reason.

    `unfinished` counts answers that were put below the others because they were cut by their limit: a model that is
    told nothing about them learns to run on. Marks are means over prompts, of finished answers (one half where answers
    are only compared). `longer` is the share of prompts whose best answer is longer than the worst, among those where
    they differ in mark and in length.
    """

    records: list[dict[str, Any]]
    prompts: int
    ties: int
    left_out: dict[str, int]
    dropped: dict[str, int]
    unfinished: int
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
    threshold = labeller.pass_mark if choice.threshold is None else choice.threshold
    choice = replace(choice, threshold=threshold)
    usable = [part_answers(row, choice.unfinished, dropped) for row in rows]
    compared = [each for each in usable if is_compared(each, choice)]
    left_out = Counter(
        reason_of(row, choice) for row, each in zip(rows, usable, strict=True) if not is_compared(each, choice)
    )
    found: list[tuple[Usable, Marks]] = []
    marks_of = labeller.mark([each.judged for each in compared], on_progress)
    for each, marks in zip(compared, marks_of, strict=True):
        if marks is None:
            left_out["not looked at"] += 1
        else:
            found.append((each, marks))
    records: list[dict[str, Any]] = []
    for each, marks in found:
        made = records_of(each.together, each.all_marks(marks), choice)
        if isinstance(made, str):
            left_out[made] += 1
        else:
            records += made
    return Labelled(
        records,
        prompts=len(rows),
        ties=left_out.pop("tie", 0),
        left_out={reason: count for reason, count in left_out.items() if count},
        dropped=dict(dropped),
        unfinished=sum(len(each.cut) for each in compared),
        mean_mark=average([sum(marks.scores) / len(marks.scores) for _, marks in found]),
        best_mark=average([max(marks.scores) for _, marks in found]),
        longer=longer_share([(each.judged, marks) for each, marks in found]),
    )


@dataclass(frozen=True, slots=True)
class Usable:
    """The answers to a prompt that are marked, and those that were cut by their limit and stand below them."""

    judged: Answered
    cut: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.judged.answers) + len(self.cut)

    @property
    def together(self) -> Answered:
        answers = (*self.judged.answers, *self.cut)
        return Answered(self.judged.prompt, answers, (*self.judged.finished, *(False for _ in self.cut)))

    def all_marks(self, marks: Marks) -> Marks:
        """A cut answer is worse than the worst that came to its end."""
        lowest = min(marks.scores) - 1.0
        return Marks((*marks.scores, *(lowest for _ in self.cut)), marks.all_bad)


def part_answers(row: Answered, unfinished: Unfinished, dropped: Counter[str]) -> Usable:
    """Empty answers say nothing and are dropped; what becomes of unfinished ones is a choice."""
    judged: list[int] = []
    cut: list[str] = []
    for at, (text, finished) in enumerate(zip(row.answers, row.finished, strict=True)):
        if not text.strip():
            dropped["empty"] += 1
        elif finished or unfinished == "keep":
            judged.append(at)
        elif unfinished == "worst":
            cut.append(text)
        else:
            dropped["unfinished"] += 1
    kept = Answered(row.prompt, tuple(row.answers[at] for at in judged), tuple(row.finished[at] for at in judged))
    return Usable(kept, tuple(cut))


def is_compared(each: Usable, choice: Choice) -> bool:
    return bool(each.judged.answers) and each.count >= fewest(choice)


def reason_of(row: Answered, choice: Choice) -> str:
    """Why a prompt is not compared: unfinished answers alone, or others that are missing or empty too."""
    said = sum(bool(text.strip()) for text in row.answers)
    return UNFINISHED if said >= fewest(choice) and not all(row.finished) else "too few answers"


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
        fixes = ["sample more answers per prompt, or at a higher temperature", "look at the reasons above"]
        if found.left_out.get(UNFINISHED):
            fixes = ["raise max_new_tokens (sample: --max-new-tokens): answers were cut before their end", *fixes]
        reasons = {"a tie": found.ties, **found.left_out, **{f"{why} answers": n for why, n in found.dropped.items()}}
        raise DataError(
            "E264",
            f"no record came out of {found.prompts} prompts",
            where=Where(source),
            evidence=[f"{count}: {reason}" for reason, count in reasons.items() if count],
            fixes=fixes,
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out.parent) from error
    replace_text(out, "".join(to_json(record) + "\n" for record in found.records))
