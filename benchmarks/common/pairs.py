"""The pairs that every side of the preference benchmark trains: read from a file, or drawn from a seed."""

import json
import random
from pathlib import Path

SENTENCE = (
    "the a one every some this that our their another small large quiet early late distant narrow broad "
    "simple careful river bridge road market teacher student engine garden letter morning winter village "
    "window station harbour forest teaches follows carries builds repairs opens closes measures records "
    "explains describes finds keeps leaves moves slowly quickly often rarely again together alone inside "
    "outside before after under over near beyond without"
)
WORDS = SENTENCE.split()
LENGTHS = {"short": ((20, 60), (20, 60)), "long": ((945, 980), (50, 65))}  # words of a prompt and of an answer


def read_pairs(path: Path, count: int) -> list[dict]:
    """The first `count` records with two different answers; an `input` follows its `instruction`."""
    pairs = []
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["chosen"] != record["rejected"]:
            parts = [record["instruction"], record.get("input", "")]
            prompt = "\n\n".join(part for part in parts if part)
            pairs.append({"prompt": prompt, "chosen": record["chosen"], "rejected": record["rejected"]})
    if len(pairs) < count:
        raise SystemExit(f"{path} holds {len(pairs)} pairs, {count} are wanted: fewer --steps, or another file")
    return pairs[:count]


def draw_pairs(work: str, count: int, seed: int) -> list[dict]:
    """Pairs of random words, the same for a seed: prompts of about 1,000 tokens for `long`."""
    chance = random.Random(seed)
    prompts, answers = LENGTHS[work]

    def text(shortest: int, longest: int) -> str:
        words = chance.choices(WORDS, k=chance.randint(shortest, longest))
        return " ".join(words).capitalize() + "."

    return [{"prompt": text(*prompts), "chosen": text(*answers), "rejected": text(*answers)} for _ in range(count)]


def records_of(pairs: list[dict], method: str, per_step: int) -> list[dict]:
    """Chat records in the order of training; for KTO each pair becomes a good and a bad answer of the same step.

    Neighbours then answer different prompts: TRL takes the answer before as the one to another prompt.
    """

    def turn(role: str, text: str) -> list[dict]:
        return [{"role": role, "content": text}]

    if method != "kto":
        return [{name: turn(role, pair[name]) for name, role in ROLES.items()} for pair in pairs]
    records = []
    for start in range(0, len(pairs), per_step):
        group = pairs[start : start + per_step]
        for place, pair in enumerate(group):
            other = group[(place + len(group) // 2) % len(group)]
            for prompt, answer, good in ((pair, pair["chosen"], True), (other, other["rejected"], False)):
                records.append(
                    {"prompt": turn("user", prompt["prompt"]), "completion": turn("assistant", answer), "label": good}
                )
    return records


ROLES = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}


def write_lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
