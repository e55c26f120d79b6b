"""The tokenised records that all sides train; a side that would train other tokens stops."""

import json
from pathlib import Path


def rows_in_order(settings: dict) -> list[dict]:
    """The rows in file order; `sort_within_step` sorts each step's own by length, which changes no step."""
    rows = [json.loads(line) for line in Path(settings["tokens"]).read_text(encoding="utf-8").splitlines()]
    per_step = settings["batch"] * settings["accumulation"]
    rows = rows[: settings["steps"] * per_step]
    if not settings["sort_within_step"]:
        return rows
    groups = [rows[start : start + per_step] for start in range(0, len(rows), per_step)]
    return [row for group in groups for row in sorted(group, key=length)]


def length(row: dict) -> int:
    return len(row["prompt"]) + max(len(answer) for answer in row["answers"])


def labelled(row: dict) -> dict[str, list[int]]:
    """A row with one answer as the tokens of a forward pass, and the labels of a loss that leaves out -100."""
    prompt, answer = row["prompt"], row["answers"][0]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def check(row: dict, number: int, prompt: list[int], answers: list[list[int]]) -> None:
    """The side's own tokens of a row: the prompt, and the answers that its loss sees."""
    if prompt != row["prompt"] or answers != row["answers"]:
        raise SystemExit(f"row {number} is tokenised otherwise: {prompt[-5:]} {answers} instead of {row}")
