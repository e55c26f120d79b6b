"""Send signals to whole trainings and compare what they become with one that got none.

Usage: python -m tests.e2e.signal_harness FOLDER STOPS [SEED]. One JSON object to stdout: what was tried, problems.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.e2e.attempts import Attempt, difference, outcome, set_up, tiny_recipe
from tests.e2e.kill_harness import phase

from tunesmith.train.checkpoint import CheckpointStore

MOMENTS = {"start": "", "train": "train.step", "save": "ckpt.begin", "prune": "ckpt.before_prune"}


class Campaign:
    """Signals so far, and what they showed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.recipe = tiny_recipe(folder)
        self.runs = folder / "runs"
        self.dice = random.Random(seed)
        self.number = 0
        self.problems: list[str] = []
        self.tried: Counter[str] = Counter()
        self.met: Counter[str] = Counter()  # phases in which a SIGTERM came
        self.slowest = self.dearest = 0.0  # answer to a SIGTERM: seconds, and of them those of the processor
        for name in ("first", "quiet"):
            attempt = Attempt(self.recipe, self.runs / name)
            self.check(attempt, attempt.finish(), 0)
        self.loading = attempt.times[attempt.passed.index("train.step")] - attempt.times[0]
        self.want = outcome(self.runs / "quiet")

    def new(self, name: str) -> Path:
        self.number += 1
        return self.runs / f"{name}-{self.number}"

    def check(self, attempt: Attempt, code: int, want: int) -> None:
        if code != want:
            self.problems.append(f"{attempt.run.name}: exit code {code}, want {want}: {attempt.log}")

    def complete(self, run: Path) -> None:
        """Resume to the end; the result must be that of the run without signals."""
        attempt = Attempt(self.recipe, run)
        self.check(attempt, attempt.finish(), 0)
        if outcome(run) != self.want:
            self.problems.append(f"{run.name} differs: {difference(outcome(run), self.want)}")

    def stop(self, run: Path, moment: str) -> bool:
        """SIGTERM at a random time of the moment; True when the run stopped, False when it had just finished."""
        attempt = Attempt(self.recipe, run)
        attempt.watch(lambda: bool(attempt.passed), 60)
        if moment != "start":
            attempt.reach(MOMENTS[moment], self.dice.randint(1, 3))
        attempt.pause(self.dice.uniform(0, 0.7 * self.loading if moment == "start" else 0.01))
        met, used = phase(attempt.passed), attempt.cpu if attempt.code is not None else attempt.cpu_so_far()
        if attempt.code is None:
            os.kill(attempt.child, signal.SIGTERM)
        sent = time.monotonic()
        code = attempt.finish()
        self.slowest = max(self.slowest, time.monotonic() - sent)
        self.dearest = max(self.dearest, attempt.cpu - used)
        if code == 0 and CheckpointStore(run / "checkpoints").newest().step == self.want["state"]["total"]:
            return False
        self.check(attempt, code, 75)
        self.tried[moment] += 1
        self.met[met] += 1
        return code == 75

    def stops(self, count: int) -> None:
        """P1, P2: stops at random moments, a few for each run; every checkpoint is valid, every resume exact."""
        while sum(self.tried[moment] for moment in MOMENTS) < count and not self.problems:
            run = self.new("stopped")
            for _ in range(self.dice.randint(2, 4)):
                moment = min(MOMENTS, key=lambda name: self.tried[name])
                if not self.stop(run, moment):
                    break
            self.complete(run)

    def signalled(self, name: str, numbers: list[signal.Signals], want: int) -> Path:
        """Send signals while step 5 is held up, which nothing else saves; the run ends with the code `want`."""
        run = self.new(name)
        attempt = Attempt(self.recipe, run, "train.step@step=5:delay:400")
        attempt.reach("train.step", 5)
        for number in numbers:
            attempt.pause(0.05)
            os.kill(attempt.child, number)
        self.check(attempt, attempt.finish(), want)
        return run

    def single(self) -> None:
        """P2, P3, P4: the other signals, and two of a kind."""
        for name, numbers, code in (("interrupt", [signal.SIGINT], 130), ("hangup", [signal.SIGHUP] * 2, 75)):
            self.expect(name, self.newest(self.signalled(name, numbers, code)), 5)
        for name, number, code in (("twice-int", signal.SIGINT, 130), ("twice-term", signal.SIGTERM, 143)):
            run = self.signalled(name, [number, number], code)
            self.expect(name, self.newest(run), 4)
            self.complete(run)
        run = self.signalled("user", [signal.SIGUSR1], 0)
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        self.expect("user", 5 in [row["step"] for row in events if row["event"] == "checkpoint"], True)
        if outcome(run) != self.want:
            self.problems.append(f"{run.name} differs: {difference(outcome(run), self.want)}")

    def newest(self, run: Path) -> int:
        newest = CheckpointStore(run / "checkpoints").newest()
        return newest.step if newest else 0

    def expect(self, name: str, found: Any, want: Any) -> None:
        self.tried[name] += 1
        if found != want:
            self.problems.append(f"{name}: {found}, want {want}")


def main(folder: Path, stops: int, seed: int) -> dict[str, Any]:
    set_up(folder)
    campaign = Campaign(folder, seed)
    campaign.single()
    campaign.stops(stops)
    return {
        "tried": dict(campaign.tried),
        "met": dict(campaign.met),
        "slowest_stop_s": round(campaign.slowest, 2),
        "dearest_stop_cpu_s": round(campaign.dearest, 2),
        "problems": campaign.problems,
        "seed": seed,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)))
