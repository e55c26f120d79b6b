"""Records with labels of their own: texts with a class or a value, and answers judged step by step."""

from __future__ import annotations

from tunesmith.data.answered import Given, read_prompt
from tunesmith.data.config import Shape
from tunesmith.data.fields import Fields, number_of
from tunesmith.data.sequences import chat_turns
from tunesmith.data.turns import check_turns, describe, field_error
from tunesmith.types import Labelled, Process, Turns

STEPS = ("steps", "completions")


def read_labelled(fields: Fields, shape: Shape) -> Labelled:
    """A text or a chat and its class (a text, true or false) or its value (a number); E213 for another label."""
    record, value = fields.record, fields.value("label")
    if isinstance(value, bool):
        value = "true" if value else "false"
    if isinstance(value, str) and value.strip():
        label: str | float = value
    elif isinstance(value, int | float):
        label = number_of(fields, fields.column("label"), value)
    else:
        raise fields.wrong("label", "the name of a class, or a number", "E213")
    if shape == "text":
        text = fields.text("text")
        fields.check_filled("text", text)
        return Labelled(text, label, record.file, record.line)
    placed = chat_turns(fields, "messages" if shape == "messages" else "conversations")
    turns = [turn for _, turn in placed]
    check_turns(record, turns, [place for place, _ in placed], answered=False)
    return Labelled(tuple(turns), label, record.file, record.line)


def read_process(fields: Fields) -> Process:
    """A prompt and the steps of its answer, each with a label from 0 (wrong) to 1 (right)."""
    record = fields.record
    name, value = fields.listed(STEPS, "a list of steps")
    column = fields.column(name)
    if not value:
        raise fields.error(name, f"{column} holds no step", "E050")
    steps: list[str] = []
    labels: list[object] = []
    for index, step in enumerate(value):
        text = step.get("text") if isinstance(step, dict) else step
        if not isinstance(text, str):
            raise field_error(record, f"{column}[{index}]", f"{column}[{index}] is {describe(step)}; want a text")
        if not text.strip():
            raise field_error(record, f"{column}[{index}]", f"{column}[{index}] is empty", "E050")
        steps.append(text)
        labels += [step["label"]] if isinstance(step, dict) and "label" in step else []
    if fields.value("labels") is not None:
        given = fields.value("labels")
        labels = list(given) if isinstance(given, list) else [given]
    if len(labels) != len(steps):
        raise fields.error("labels", f"{len(labels)} labels for {len(steps)} steps", "E214")
    judged = tuple(_share(fields, f"{fields.column('labels')}[{index}]", label) for index, label in enumerate(labels))
    return Process(_prompt(fields), tuple(steps), judged, record.file, record.line)


def _share(fields: Fields, place: str, value: object) -> float:
    share = float(value) if isinstance(value, bool) else number_of(fields, place, value)
    if not 0 <= share <= 1:
        message = f"{place} is {share:g}; want true or false, or a number from 0 (wrong) to 1 (right)"
        raise field_error(fields.record, place, message, "E213")
    return share


def _prompt(fields: Fields) -> Turns:
    given: Given | None = read_prompt(fields)
    if given is None:
        raise fields.wrong("prompt", "a text or a list of turns")
    if isinstance(given, str):
        fields.check_filled("prompt", given)
        return given
    check_turns(fields.record, [turn for _, turn in given], [place for place, _ in given], answered=False)
    return tuple(turn for _, turn in given)
