"""Kill whole trainings at random moments, resume them, and compare what they become with one that nobody killed.

Usage: python -m tests.e2e.kill_harness FOLDER KILLS [SEED [OBJECTIVE]]. Progress goes to stderr, one JSON object to
stdout: kills by phase, runs finished, problems (none when every run equals the unkilled one to the bit). Before every
second attempt the cached figures of the reference are thrown away: they must come out the same again.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.e2e.attempts import Attempt, difference, outcome, set_up, tiny_recipe

from tunesmith.recipe import Recipe
from tunesmith.train.checkpoint import CheckpointStore

SHARES = {"start": 0.3, "train": 0.3, "save": 0.3, "prune": 0.1}  # what the kills aim at
QUOTAS = {"start": 0.2, "train": 0.2, "save": 0.2, "prune": 0.05}  # what they must reach
MARKS = {"train": "train.step", "save": "ckpt.begin", "prune": "ckpt.before_prune"}
PRUNING = ("ckpt.before_prune", "ckpt.mid_prune", "ckpt.mid_remove")


class Campaign:
    """Kills so far, and what they showed."""

    def __init__(self, folder: Path, seed: int, objective: str) -> None:
        self.recipe = tiny_recipe(folder, objective)
        self.reference = folder / "home" / "reference"
        self.runs = folder / "runs"
        self.dice = random.Random(seed)
        self.seconds = unkilled(self.recipe, self.runs)
        self.want = outcome(self.runs / "unkilled")
        self.phases: Counter[str] = Counter()
        self.later_epoch = 0  # kills after which the run had to go on in the second epoch
        self.finished = 0
        self.problems: list[str] = []

    @property
    def kills(self) -> int:
        return sum(self.phases.values())

    def torture(self, run: Path, kills: int) -> None:
        """Start, kill and resume one run until it has been killed often enough, then let it finish and compare."""
        for number in range(kills):
            if number % 2:
                shutil.rmtree(self.reference, ignore_errors=True)
            attempt = Attempt(self.recipe, run)
            code = self.strike(attempt)
            if code != -signal.SIGKILL:
                break
            self.phases[phase(attempt.passed or ["none"])] += 1
            self.inspect(run, attempt.committed)
        else:
            attempt = Attempt(self.recipe, run)
            code = attempt.finish()
        if code != 0:
            self.problems.append(f"{run.name}: exit code {code}: {attempt.log}")
            return
        self.finished += 1
        found = outcome(run)
        if found != self.want:
            self.problems.append(f"{run.name} differs from the unkilled run: {difference(found, self.want)}")

    def strike(self, attempt: Attempt) -> int:
        """Kill at a random moment of the phase that lacks kills most; the exit code, 0 when the run finished before."""
        aim = max(SHARES, key=lambda name: SHARES[name] - self.phases[name] / (self.kills + 1))
        if aim != "start":
            attempt.reach(MARKS[aim], self.dice.randint(1, 4))
        attempt.pause(self.dice.uniform(0, self.seconds[aim]))
        return attempt.kill()

    def inspect(self, run: Path, committed: int) -> None:
        """What a kill must never leave: a damaged checkpoint, an older one than was committed, or fewer than before."""
        store = CheckpointStore(run / "checkpoints")
        newest = store.newest()
        found = newest.step if newest else 0
        if found < committed:
            self.problems.append(f"{run.name}: step {committed} was committed, step {found} is the newest")
        if newest is None:
            return
        self.later_epoch += newest.state["source"]["epoch"] >= 1
        self.problems += [str(skipped) for skipped in newest.skipped]
        if newest.step >= 4 and len(store.steps()) < 2:
            self.problems.append(f"{run.name}: only {store.steps()} are left at step {newest.step}")

    def report(self) -> dict[str, Any]:
        return {
            "kills": self.kills,
            "phases": dict(self.phases),
            "quotas_met": all(self.phases[name] >= quota * self.kills for name, quota in QUOTAS.items()),
            "later_epoch": self.later_epoch,
            "finished": self.finished,
            "problems": self.problems,
            "seconds_of_phase": {name: round(value, 4) for name, value in self.seconds.items()},
        }


def main(folder: Path, kills: int, seed: int = 0, objective: str = "sft") -> dict[str, Any]:
    started = time.monotonic()
    set_up(folder)
    campaign = Campaign(folder, seed, objective)
    number = 0
    while campaign.kills < kills and not campaign.problems:
        number += 1
        campaign.torture(campaign.runs / f"killed-{number}", min(kills - campaign.kills, campaign.dice.randint(7, 11)))
        print(json.dumps(campaign.report()), file=sys.stderr, flush=True)
    return {**campaign.report(), "seed": seed, "seconds": round(time.monotonic() - started, 1)}


def phase(passed: list[str]) -> str:
    """Where a process is that has passed these failpoints."""
    if "train.step" not in passed:
        return "start"
    if passed[-1] in PRUNING:
        return "prune"
    return "save" if passed[-1].startswith("ckpt.") and passed[-1] != "ckpt.end" else "train"


def unkilled(recipe: Recipe, runs: Path) -> dict[str, float]:
    """Train without a kill, the first time to fill the caches; seconds that one passage of each phase lasts."""
    for name in ("first", "unkilled"):
        attempt = Attempt(recipe, runs / name)
        assert attempt.finish() == 0, attempt.log
    spent = Counter()
    last = attempt.began
    for index, now in enumerate(attempt.times):
        spent[phase(attempt.passed[:index] or ["none"])] += now - last
        last = now
    counts = {"start": 1, **{name: attempt.passed.count(mark) for name, mark in MARKS.items()}}
    return {name: spent[name] / counts[name] for name in SHARES}


if __name__ == "__main__":
    place, number, *rest = sys.argv[1:]
    print(json.dumps(main(Path(place), int(number), *map(int, rest[:1]), *rest[1:])))
