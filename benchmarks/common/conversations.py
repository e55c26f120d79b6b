"""The conversations that every side of the SFT benchmark trains: read from a file, or drawn from a seed."""

import json
import math
import random
from pathlib import Path

from common.pairs import WORDS

MASKED = {"short": 0.6, "long": 0.3}  # share of the tokens that the loss does not see
LONG = 2044  # tokens of a long conversation; the template closes it with one more
MEDIAN, SPREAD, SHORTEST, LONGEST = 170, 0.6, 48, 512  # tokens of a short one, lognormal: about 200 on average
TEMPLATE = 30  # tokens that the template puts around a question, its system prompt with them
CLOSE = 2  # full stop and end of the answer; a full stop stands behind the question as well


def read_records(path: Path, count: int) -> list[dict]:
    """The first `count` records of a jsonl file, in whatever shape Tunesmith reads."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(lines) < count:
        raise SystemExit(f"{path} holds {len(lines)} records, {count} are wanted: fewer --steps, or another file")
    return [json.loads(line) for line in lines[:count]]


def draw_records(work: str, count: int, seed: int) -> list[dict]:
    """Questions and answers of random words, most of them one token each; the same for a seed."""
    chance = random.Random(seed)

    def text(words: int) -> str:
        return " ".join(chance.choices(WORDS, k=max(2, words))).capitalize() + "."

    records = []
    for _ in range(count):
        tokens = LONG if work == "long" else short_length(chance)
        masked = round(MASKED[work] * tokens)
        question, answer = masked - TEMPLATE - 1, tokens - masked - CLOSE
        records.append({"messages": [turn("user", text(question)), turn("assistant", text(answer))]})
    return records


def short_length(chance: random.Random) -> int:
    drawn = round(math.exp(chance.gauss(math.log(MEDIAN), SPREAD)))
    return min(max(drawn, SHORTEST), LONGEST)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
