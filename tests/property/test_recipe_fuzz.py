"""K9: mutated recipes never end in a traceback, and every accepted one survives being written and read."""

import random
from pathlib import Path

import pytest

from tunesmith.configuring.shipped import shipped
from tunesmith.errors import TunesmithError
from tunesmith.recipe import load_recipe, to_yaml

TOKENS = [
    *"{}[]:,#&*!|>'\"%@`-?\t\n ", "\x00", "\ufeff", "é", "\u2028", "<<: ", "&a ", "*a", "!!python/name:os.system ", 
    "---\n", "null", "~", "true", "no", "010", "1e-4", "1e999", ".inf", ".nan", "-1", "0", "9" * 5000, "12:30", "0x1F",
    "''", "[]", "{}", "- ", "train:", "train.steps: 3\n", "learning_rate: 1\n", "lora_r: 8\n", "version: 2\n",
    "objective: dpo\n",
    "model: {adapter: {method: freeze}}\n", "data: {train: [a, {path: b, weight: 0}]}\n", "  early_stopping: {}\n",
]  # fmt: skip


def mutated(text: str, random_: random.Random) -> str:
    for _ in range(random_.choice([1, 1, 1, 2, 3, 6])):
        lines = text.splitlines(keepends=True) or [""]
        row = random_.randrange(len(lines))
        column = random_.randrange(len(text) + 1)
        match random_.randrange(6):
            case 0:
                text = text[:column] + random_.choice(TOKENS) + text[column:]
            case 1:
                text = text[:column] + text[column + random_.randint(1, 12) :]
            case 2:
                text = "".join(lines[:row] + lines[row + 1 :])
            case 3:
                text = "".join([*lines, random_.choice(lines)])
            case 4:
                lines[row] = " " * random_.randrange(8) + lines[row].lstrip()
                text = "".join(lines)
            case _:
                head, colon, _ = lines[row].partition(":")
                lines[row] = f"{head}{colon} {random_.choice(TOKENS)}\n"
                text = "".join(lines)
    return text


def overrides(random_: random.Random) -> list[str]:
    keys = [
        "train.steps",
        "data.train.0.path",
        "data.train",
        "model.adapter",
        "model.adapter.method",
        "run.name",
        "x.y",
        "",
    ]
    return [f"{random_.choice(keys)}={random_.choice(TOKENS)}" for _ in range(random_.choice([0, 0, 0, 1, 2]))]


def check(folder: Path, seed: int, texts: list[str]) -> bool:
    random_ = random.Random(seed)
    path = folder / "recipe.yaml"
    path.write_bytes(mutated(random_.choice(texts), random_).encode("utf-8", "surrogatepass"))
    try:
        recipe = load_recipe(path, overrides(random_), {}).recipe
    except TunesmithError as error:
        refusal = error
    else:
        refusal = None
    if refusal is not None:
        assert refusal.exit_code in (2, 9)
        assert all(diagnostic.where is not None and str(diagnostic.where) for diagnostic in refusal.diagnostics)
        return False
    path.write_text(to_yaml(recipe))
    assert load_recipe(path, (), {}).recipe == recipe
    return True


def run(folder: Path, count: int) -> int:
    texts = [path.read_text() for path in shipped().values()]
    accepted = sum(check(folder, seed, texts) for seed in range(count))
    assert 0.1 * count < accepted < 0.9 * count
    return accepted


def test_k09_a_hundred_mutated_recipes(tmp_path):
    run(tmp_path, 100)


@pytest.mark.nightly
def test_k09_two_thousand_mutated_recipes(tmp_path, evidence):
    figure = f"2,000, of which {run(tmp_path, 2000):,} accepted and read back the same"
    evidence("K9", claim="mutated recipes without a traceback", figure=figure, seed=0)
