"""Stop a training at a saved step and resume it, for every kind of place; compare with one that was not stopped.

Usage: python -m tests.e2e.resume_matrix FOLDER METHOD CASES. One JSON object to stdout. A case is an epoch (1, 2, 3),
its middle or its end, 1 or 4 microbatches a step, records packed together or each one alone, and saves in the
background or not: 48, of which the first CASES of a shuffled list are taken.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from tests.e2e.attempts import Attempt, difference, outcome, set_up, tiny_recipe

from tunesmith.recipe import Recipe
from tunesmith.train.checkpoint import CheckpointStore

EPOCHS = 3
METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "lora": ("sft", {}),
    "full": ("sft", {"model.adapter": "full"}),
    "freeze": ("sft", {"model.adapter": "freeze"}),
    "nf4": ("sft", {"model.quantization": "nf4"}),
    "dpo": ("dpo", {}),
    "kto": ("kto", {}),
    "reward": ("reward", {}),
}
SHAPES = {  # microbatches, packed -> settings of a step
    (1, True): {"train.sequences_per_step": 4, "train.microbatch_tokens": 4096},
    (4, True): {"train.sequences_per_step": 12, "train.microbatch_tokens": 150},
    (1, False): {"train.sequences_per_step": 2, "train.microbatch_tokens": 4096},
    (4, False): {"train.sequences_per_step": 4, "train.microbatch_tokens": 8},
}
CASES = list(itertools.product(range(1, EPOCHS + 1), ("middle", "end"), (1, 4), (True, False), (True, False)))


def recipe_of(folder: Path, method: str, shape: tuple[int, bool], **more: object) -> Recipe:
    objective, changes = METHODS[method]
    changes = {"train.epochs": EPOCHS, "train.evaluate_every": 0, **changes, **SHAPES[shape], **more}
    if objective == "kto" and SHAPES[shape]["train.sequences_per_step"] < 4:
        changes["train.sequences_per_step"] = 4
    return tiny_recipe(folder, objective, changes)


class Matrix:
    """Cases of one method, and what they showed."""

    def __init__(self, folder: Path, method: str) -> None:
        self.folder, self.method = folder, method
        self.whole: dict[tuple[int, bool], dict[str, Any]] = {}
        self.problems: list[str] = []
        self.stopped = 0

    def train(self, recipe: Recipe, run: Path, armed: str = "") -> int:
        attempt = Attempt(recipe, run, armed)
        return attempt.finish()

    def reference(self, shape: tuple[int, bool]) -> dict[str, Any]:
        """What the run becomes that nobody stops."""
        if shape not in self.whole:
            run = self.folder / "runs" / f"{self.method}-{shape[0]}-{shape[1]}"
            code = self.train(recipe_of(self.folder, self.method, shape, **{"train.checkpoint.every": 0}), run)
            assert code == 0, run.with_suffix(".log").read_text()
            self.whole[shape] = outcome(run)
        return self.whole[shape]

    def case(self, number: int, epoch: int, place: str, shape: tuple[int, bool], background: bool) -> None:
        """Stop right after the checkpoint of a step, resume, compare to the bit."""
        want = self.reference(shape)
        steps = want["state"]["total"] // EPOCHS
        at = epoch * steps if place == "end" else (epoch - 1) * steps + max(1, steps // 2)
        last = at == want["state"]["total"]
        more = {"train.checkpoint.every": at, "train.checkpoint.in_background": background}
        recipe = recipe_of(self.folder, self.method, shape, **more)
        run = self.folder / "runs" / f"{self.method}-case-{number}"
        code = self.train(recipe, run, f"ckpt.end@step={at}:kill")
        newest = CheckpointStore(run / "checkpoints").newest()
        if code != -9 or newest is None or newest.step != at:
            self.problems.append(f"{run.name}: not stopped at step {at}: code {code}")
            return
        self.stopped += 1
        cursor = newest.state["source"]
        if not last and place == "middle" and cursor["epoch"] != epoch - 1:
            self.problems.append(f"{run.name}: epoch {cursor['epoch'] + 1}, want {epoch}")
        code = self.train(recipe, run)
        found = outcome(run)
        if code != 0 or found != want:
            self.problems.append(f"{run.name}: code {code}, differs: {difference(found, want)}")


def main(folder: Path, method: str, count: int) -> dict[str, Any]:
    started = time.monotonic()
    set_up(folder)
    matrix = Matrix(folder, method)
    chosen = random.Random(0).sample(CASES, len(CASES))[:count]
    for number, (epoch, place, microbatches, packed, background) in enumerate(chosen):
        matrix.case(number, epoch, place, (microbatches, packed), background)
        print(number, len(matrix.problems), file=sys.stderr, flush=True)
    seconds = round(time.monotonic() - started, 1)
    return {"cases": len(chosen), "stopped": matrix.stopped, "problems": matrix.problems, "seconds": seconds}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
