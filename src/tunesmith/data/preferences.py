"""Records that compare or judge whole answers: pairs, feedback and rankings."""

from __future__ import annotations

from typing import Any

from tunesmith.data.answered import Given, check_answer, prompts_error, read_answer, read_prompt, same, settle
from tunesmith.data.config import Shape
from tunesmith.data.fields import Fields, Placed, number_of
from tunesmith.data.sequences import read_sequence
from tunesmith.data.transcripts import read_transcript
from tunesmith.data.turns import describe
from tunesmith.types import Conversation, Feedback, Pair, Ranking, Turns

ANSWERS = ("answers", "completions", "responses")
SCORES = ("scores", "ratings")
_JUDGED = {"true": True, "good": True, "1": True, "false": False, "bad": False, "0": False}


def read_pair(fields: Fields, shape: Shape) -> Pair:
    """Two answers to one prompt (E048-E051, E211, E213, E222)."""
    record = fields.record
    if shape == "transcript":
        prompt, chosen, rejected = _transcripts(fields)
    else:
        prompt, (chosen, rejected) = _answers_of_pair(fields)
    return Pair(prompt, chosen, rejected, record.file, record.line, fields.tools(), _margin(fields))


def read_feedback(fields: Fields, shape: Shape) -> Feedback:
    """A record to learn from whose last assistant turn (or completion) is judged by `label`."""
    record = fields.record
    good = _judged(fields)
    if shape == "prompt_completion":
        names = ("prompt", "completion")
        given = read_answer(fields, fields.column(names[1]), fields.value(names[1]))
        prompt, (answer,) = settle(fields, read_prompt(fields), [given], [fields.column(names[1])])
        return Feedback(prompt, answer, good, record.file, record.line, fields.tools())
    entry = read_sequence(fields, shape)
    assert isinstance(entry, Conversation), "the other shapes of feedback are chats"
    last = entry.messages[-1]
    if last.role != "assistant":
        raise fields.error(
            "label", f"the conversation ends with a {last.role} turn: there is no answer to judge", "E051"
        )
    return Feedback(entry.messages[:-1], entry.messages[-1:], good, record.file, record.line, entry.tools)


def read_ranking(fields: Fields) -> Ranking:
    """Several answers to one prompt, best first; with scores they are put in the order of their scores."""
    record = fields.record
    name, value = fields.listed(ANSWERS, "a list of answers")
    column = fields.column(name)
    if len(value) < 2:
        raise fields.error(name, f"{column} holds {len(value)} answers; a ranking needs two or more", "E214")
    places = [f"{column}[{index}]" for index in range(len(value))]
    given = [read_answer(fields, place, answer) for place, answer in zip(places, value, strict=True)]
    prompt, answers = settle(fields, read_prompt(fields), given, places)
    scores = _scores(fields, len(answers))
    if scores is not None:
        order = [index for index, _ in sorted(enumerate(scores), key=lambda scored: -scored[1])]
        answers = tuple(answers[index] for index in order)
        scores = tuple(scores[index] for index in order)
    return Ranking(prompt, answers, record.file, record.line, fields.tools(), scores)


def _answers_of_pair(fields: Fields) -> tuple[Turns, tuple[Turns, ...]]:
    names = ("chosen", "rejected")
    if not fields.has("chosen") and fields.has("chosen_messages"):
        names = ("chosen_messages", "rejected_messages")
    if not fields.has("chosen") and isinstance(fields.value("output"), list):
        given, places = _listed(fields)
        return settle(fields, read_prompt(fields), given, places)
    places = [fields.column(name) for name in names]
    missing = next((name for name in names if fields.value(name) is None), None)
    if missing is not None:
        raise fields.wrong(missing, "an answer: a text, a turn or a list of turns")
    given = [read_answer(fields, fields.column(name), fields.value(name)) for name in names]
    return settle(fields, read_prompt(fields), given, places)


def _listed(fields: Fields) -> tuple[list[Given], list[str]]:
    """Older alpaca files: output is [chosen, rejected]."""
    value, column = fields.value("output"), fields.column("output")
    if len(value) != 2:
        message = f"{column} holds {len(value)} answers; a pair has two: [chosen, rejected]"
        raise fields.error("output", message, "E214")
    places = [f"{column}[0]", f"{column}[1]"]
    return [read_answer(fields, place, answer) for place, answer in zip(places, value, strict=True)], places


def _transcripts(fields: Fields) -> tuple[Turns, Turns, Turns]:
    """All before the last answer is the prompt, and the same in both."""
    chosen, rejected = read_transcript(fields, "chosen"), read_transcript(fields, "rejected")
    places = fields.column("chosen"), fields.column("rejected")
    before, other = chosen[:-1], rejected[:-1]
    if len(before) != len(other) or not all(same(one, two) for one, two in zip(before, other, strict=True)):
        raise prompts_error(fields, places[1], "what stands before the last answers differs", _parting(before, other))
    for place, answer in zip(places, (chosen[-1:], rejected[-1:]), strict=True):
        check_answer(fields, before, answer, place)
    return tuple(turn for _, turn in before), (chosen[-1][1],), (rejected[-1][1],)


def _parting(one: Placed, other: Placed) -> list[str]:
    at = next((at for at, pair in enumerate(zip(one, other, strict=False)) if not same(*pair)), -1)
    return [f"{label}: {turn.content[:120]!r}" for label, turn in (*one[at:][:1], *other[at:][:1])]


def _margin(fields: Fields) -> float | None:
    """By how much the chosen answer is better: `margin`, or the difference of both scores."""
    margin = fields.number("margin")
    scores = fields.number("score_chosen"), fields.number("score_rejected")
    if margin is None and scores[0] is not None and scores[1] is not None:
        margin = scores[0] - scores[1]
    elif margin is None and scores != (None, None):
        alone = "score_rejected" if scores[0] is not None else "score_chosen"
        raise fields.error(alone, f"{fields.column(alone)} is missing: only one of the two answers has a score", "E213")
    if margin is not None and margin < 0:
        name = "margin" if fields.number("margin") is not None else "score_rejected"
        message = f"the chosen answer is worse than the rejected one: the margin is {margin:g}"
        raise fields.error(
            name, message, "E213", ["swap chosen and rejected", "leave such records out: data.on_bad=skip"]
        )
    return margin


def _judged(fields: Fields) -> bool:
    value: Any = fields.value("label")
    word = value.strip().lower() if isinstance(value, str) else str(int(value)) if _is_bit(value) else None
    if word not in _JUDGED:
        got = "is missing" if not fields.has("label") else f"is {value!r}"[:60] if word else f"is {describe(value)}"
        column = fields.column("label")
        raise fields.error("label", f"{column} {got}; want true or false (or 1 and 0, good and bad)", "E213")
    return _JUDGED[word]


def _is_bit(value: Any) -> bool:
    return isinstance(value, int | float) and value in (0, 1)


def _scores(fields: Fields, count: int) -> tuple[float, ...] | None:
    name = fields.first(SCORES)
    value = None if name is None else fields.value(name)
    if name is None or value is None:
        return None
    column = fields.column(name)
    if not isinstance(value, list):
        raise fields.wrong(name, "a list of numbers, one for each answer", "E213")
    if len(value) != count:
        raise fields.error(name, f"{column} holds {len(value)} numbers for {count} answers", "E214")
    return tuple(number_of(fields, f"{column}[{index}]", score) for index, score in enumerate(value))
