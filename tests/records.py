"""Small sets of records of every kind, the same ones each time."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

WORDS = (
    *("sea", "moon", "fox", "dog", "capital", "France", "answer", "short", "poem", "good", "morning", "number"),
    *("twelve", "thirty", "hello", "please", "system", "tool"),
)


def write_records(path: Path, kind: str, count: int, seed: int = 0, system: str = "") -> Path:
    """`count` records of a kind (as Objective.kind names them), with texts of different lengths.

    With `system`, two in three begin with that system message.
    """
    dice = random.Random(f"{kind} {seed}")
    make = {
        "sequence": conversation,
        "pair": pair,
        "feedback": feedback,
        "ranking": ranking,
        "label": labelled,
        "process": process,
    }[kind]
    rows = [make(dice, index) for index in range(count)]
    for index, row in enumerate(rows):
        if system and index % 3 < 2:
            turns = row["messages" if "messages" in row else "prompt"]
            turns.insert(0, {"role": "system", "content": system})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def text(dice: random.Random) -> str:
    return " ".join(dice.choices(WORDS, k=dice.randint(2, 14)))


def asked(dice: random.Random, index: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{text(dice)} {index}"}]


def said(words: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": words}]


def conversation(dice: random.Random, index: int) -> dict[str, Any]:
    return {"messages": asked(dice, index) + said(text(dice))}


def pair(dice: random.Random, index: int) -> dict[str, Any]:
    """The chosen answer thanks, the rejected one does not: a difference that can be learned."""
    return {
        "prompt": asked(dice, index),
        "chosen": said(f"please {text(dice)}"),
        "rejected": said(f"no {text(dice)}"),
    }


def feedback(dice: random.Random, index: int) -> dict[str, Any]:
    good = index % 3 != 0
    return {
        "prompt": asked(dice, index),
        "completion": said(f"{'please' if good else 'no'} {text(dice)}"),
        "label": good,
    }


def ranking(dice: random.Random, index: int) -> dict[str, Any]:
    answers = [said(f"{word} {text(dice)}") for word in ("please", "good", "no")]
    return {"prompt": asked(dice, index), "answers": answers}


def labelled(dice: random.Random, index: int) -> dict[str, Any]:
    label = ("calm", "loud", "odd")[index % 3]
    return {"text": f"{label} {text(dice)}", "label": label}


def process(dice: random.Random, index: int) -> dict[str, Any]:
    steps = [text(dice) for _ in range(dice.randint(1, 4))]
    labels = [dice.random() < 0.6 for _ in steps]
    return {"prompt": asked(dice, index), "steps": steps, "labels": labels}
