"""Answers by Tunesmith's engine against `generate` of transformers: the same prompts, and in fp32 the same tokens."""

import argparse
import random
import sys
from pathlib import Path

from common.environments import versions
from common.models import TITLES, model_folder
from common.options import add_options, wanted
from common.report import OURS, PACKAGES, facts, medians_of, ratios, save
from common.sides import Side, alternate
from common.tables import show_generation

WORK = {  # lengths of the prompts, and answers to each
    "batch": ((96, 40, 300, 120, 64, 180, 220, 30), 1),
    "samples": ((300,), 16),
    "one": ((120,), 1),
}
ROWS = {
    OURS: {"program": "tunesmith", "held": "packed"},
    "tunesmith, weights shared": {"program": "tunesmith", "held": "shared"},
    "tunesmith, int8": {"program": "tunesmith", "held": "int8"},
    "transformers": {"program": "transformers"},
}
FIGURES = ("tokens_per_second", "tokens_per_cpu_second", "first_token_seconds", "peak_bytes")
PROVEN = 24  # tokens of every answer that must be equal in fp32


def main() -> None:
    choices = parse()
    folder = str(model_folder(choices.model, choices.folder).resolve())
    lengths, count = WORK[choices.work]
    draw = random.Random(0)
    prompts = [[draw.randrange(100, 40_000) for _ in range(length)] for length in lengths]
    shared = {"model": folder, "prompts": prompts, "answers": count, "threads": choices.threads}
    sides = [
        Side(name, sys.executable, "generate_run.py", settings)
        for name, settings in ROWS.items()
        if wanted(name, choices.only)
    ]
    if not choices.no_proof:
        prove(sides, shared)
    given = {**shared, "dtype": choices.dtype, "tokens": choices.tokens}
    busy = list(alternate(sides, choices.repeats, choices.allow_load, lambda side: side.train(given)))
    save(report(sides, choices, busy), choices.results, f"generate-{choices.model}-{choices.work}", show_generation)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=tuple(TITLES), default="smollm2")
    parser.add_argument("--folder", type=Path, help="folder of SmolLM2-135M-Instruct; the starter model when left out")
    parser.add_argument("--work", choices=tuple(WORK), default="batch")
    parser.add_argument("--tokens", type=int, default=64, help="of every answer; none ends before")
    add_options(parser)
    return parser.parse_args()


def prove(sides: list[Side], shared: dict) -> None:
    """In fp32 every exact row must answer with the tokens of transformers."""
    exact = [side for side in sides if side.settings.get("held") != "int8"]
    given = {**shared, "dtype": "float32", "tokens": PROVEN}
    made = {side.name: side.train(given)["made"] for side in exact}
    for name, tokens in made.items():
        if tokens != made[exact[-1].name]:
            raise SystemExit(f"{name} answers with other tokens than {exact[-1].name} in fp32")


def report(sides: list[Side], choices: argparse.Namespace, busy: list[float]) -> dict:
    medians = {side.name: medians_of(side.runs, FIGURES) for side in sides}
    lengths, count = WORK[choices.work]
    work = {
        "model": TITLES[choices.model],
        "work": choices.work,
        "prompts": lengths,
        "answers": count,
        "tokens": choices.tokens,
        "dtype": choices.dtype,
        "threads": choices.threads,
        "repeats": choices.repeats,
    }
    agreement = {side.name: agree(side.runs[0]["made"], sides[-1].runs[0]["made"]) for side in sides}
    for side in sides:
        for run in side.runs:
            del run["made"]
    return {
        "benchmark": "generate",
        **facts(work),
        "load_allowed": choices.allow_load,
        "busy_cores_before": busy,
        "proven_tokens": 0 if choices.no_proof else PROVEN,
        "sides": {
            side.name: {
                "settings": side.settings,
                "versions": versions(side.python, PACKAGES),
                "median": {**medians[side.name], "same_tokens": agreement[side.name]},
                "runs": side.runs,
            }
            for side in sides
        },
        "ratios": ratios(medians),
    }


def agree(made: list[list[int]], others: list[list[int]]) -> float:
    """Share of answers' tokens before the first one that differs."""
    alike = 0
    for own, other in zip(made, others, strict=True):
        alike += next((at for at, pair in enumerate(zip(own, other, strict=True)) if pair[0] != pair[1]), len(own))
    return alike / sum(map(len, made))


if __name__ == "__main__":
    main()
