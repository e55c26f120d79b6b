"""Stop trainings at saved steps and resume them, for every kind of place; compare with ones that were not stopped.

Usage: python -m tests.e2e.resume_matrix FOLDER CASES METHOD... One JSON object to stdout, by method. A case is an epoch
(1, 2, 3), its middle or its end, 1 or 4 microbatches a step, records packed together or each one alone, and saves in
the background or not: 48. The six places of one kind of run stand in one chain: it is stopped at the first one, resumed
and stopped at the second one, and so on; all losses and the last checkpoint must be those of the run that went through.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.attempts import Attempt, difference, outcome, set_up, tiny_recipe
from tests.e2e.resume_methods import METHODS, settings_of

from tunesmith.recipe import Recipe
from tunesmith.train.checkpoint import CheckpointStore

EPOCHS = 3
SHAPES = {  # microbatches, packed -> settings of a step
    (1, True): {"train.sequences_per_step": 4, "train.microbatch_tokens": 4096},
    (4, True): {"train.sequences_per_step": 12, "train.microbatch_tokens": 150},
    (1, False): {"train.sequences_per_step": 2, "train.microbatch_tokens": 4096},
    (4, False): {"train.sequences_per_step": 4, "train.microbatch_tokens": 8},
}
PLACES = list(itertools.product(range(1, EPOCHS + 1), ("middle", "end")))
KINDS = list(itertools.product(SHAPES, (True, False)))
Kind = tuple[tuple[int, bool], bool]


def recipe_of(folder: Path, method: str, shape: tuple[int, bool], **more: object) -> Recipe:
    objective = METHODS[method][0]
    changes = {"train.epochs": EPOCHS, "train.evaluate_every": 0, **SHAPES[shape], **more}
    changes |= settings_of(folder, method)
    if objective == "kto" and SHAPES[shape]["train.sequences_per_step"] < 4:
        changes["train.sequences_per_step"] = 4
    return tiny_recipe(folder, objective, changes)


def chains(count: int, seed: str) -> Iterator[tuple[Kind, list[tuple[int, str]]]]:
    """Every kind of run with its places, in the order of training, until there are `count` cases."""
    dice = random.Random(seed)
    for kind in dice.sample(KINDS, len(KINDS)):
        chosen = sorted(dice.sample(range(len(PLACES)), min(count, len(PLACES))))
        count -= len(chosen)
        if chosen:
            yield kind, [PLACES[number] for number in chosen]


class Matrix:
    """Cases of one method, and what they showed."""

    def __init__(self, folder: Path, method: str) -> None:
        self.folder, self.method = folder, method
        self.whole: dict[tuple[int, bool], dict[str, Any]] = {}
        self.problems: list[str] = []
        self.stopped = 0

    def reference(self, shape: tuple[int, bool]) -> dict[str, Any]:
        """What the run becomes that nobody stops."""
        if shape not in self.whole:
            run = self.folder / "runs" / f"{self.method}-{shape[0]}-{shape[1]}"
            attempt = Attempt(recipe_of(self.folder, self.method, shape, **{"train.checkpoint.every": 0}), run)
            assert attempt.finish() == 0, attempt.log
            self.whole[shape] = outcome(run)
        return self.whole[shape]

    def chain(self, kind: Kind, places: list[tuple[int, str]]) -> None:
        """Stop right after the checkpoint of each place, resume, and compare the end to the bit."""
        (shape, background), want = kind, self.reference(kind[0])
        run = self.folder / "runs" / f"{self.method}-{shape[0]}-{shape[1]}-{background}"
        total = want["state"]["total"]

        def begin(at: int, armed: str) -> Attempt:
            more = {"train.checkpoint.every": at, "train.checkpoint.in_background": background}
            return Attempt(recipe_of(self.folder, self.method, shape, **more), run, armed)

        for epoch, place in places:
            steps = total // EPOCHS
            at = epoch * steps if place == "end" else (epoch - 1) * steps + max(1, steps // 2)
            attempt = begin(at, f"ckpt.end@step={at}:kill")
            code = attempt.finish()
            newest = CheckpointStore(run / "checkpoints").newest()
            if code != -9 or newest is None or newest.step != at:
                self.problems.append(f"{run.name}: not stopped at step {at}: code {code}: {attempt.log}")
                return
            self.stopped += 1
            found = newest.state["source"]["epoch"] + 1
            if at < total and found != epoch:
                self.problems.append(f"{run.name}: step {at} is of epoch {found}, want {epoch}")
        attempt = begin(total, "")
        code = attempt.finish()
        if code != 0:
            self.problems.append(f"{run.name}: code {code}: {attempt.log}")
        elif outcome(run) != want:
            self.problems.append(f"{run.name} stopped at {places} differs: {difference(outcome(run), want)}")


def main(folder: Path, count: int, methods: list[str]) -> dict[str, Any]:
    set_up(folder)
    told = {}
    for method in methods:
        started = time.monotonic()
        matrix = Matrix(folder, method)
        for kind, places in chains(count, method):
            matrix.chain(kind, places)
        seconds = round(time.monotonic() - started, 1)
        told[method] = {"stopped": matrix.stopped, "problems": matrix.problems, "seconds": seconds}
        print(method, told[method], file=sys.stderr, flush=True)
    return {"methods": told, "problems": [problem for each in told.values() for problem in each["problems"]]}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])))
