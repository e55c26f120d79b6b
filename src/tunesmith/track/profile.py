"""Where the time of a run's steps went, as `profile.json` and as a table to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.track.clock import SPLIT, Place, Spent
from tunesmith.track.files import replace_text, to_json
from tunesmith.track.run_dir import RunDir

PARTS = ("embedding", "qkv", "attention", "out", "gate and up", "down", "norms, rotary, gate", "head and loss", "")
BEFORE = ("waiting for data", "batch to device", "reference", "look ahead")
AFTER = ("between ranks", "clip", "optimizer", "checkpoint", "evaluation", "other")
BETWEEN_STEPS = ("checkpoint", "evaluation")
ORDER: tuple[Place, ...] = (
    *((name, "") for name in BEFORE),
    *((phase, part) for phase in SPLIT for part in PARTS),
    *((name, "") for name in AFTER),
)
ALWAYS = frozenset({("waiting for data", ""), ("optimizer", ""), ("clip", ""), ("checkpoint", ""), ("evaluation", "")})


@dataclass(frozen=True, slots=True)
class Profile:
    """Seconds by place, all of them between the end of the warm-up and the end of the run, checkpoints included.

    `step_seconds` are those of the steps alone; `utilisation` and `floor_seconds` belong to them. The floor is what
    their matrix products would take alone, at the measured speed of each, on all `threads`; a GPU has 0.
    """

    spent: Mapping[Place, Spent]
    steps: int
    warmup: int
    attempt: int
    tokens: int
    scored: float
    step_seconds: float
    utilisation: float
    floor_seconds: float
    threads: int

    def to_json(self) -> dict[str, Any]:
        whole = self.whole
        return {
            "schema": 1,
            "steps": self.steps,
            "warmup_steps": self.warmup,
            "attempt": self.attempt,
            "tokens": self.tokens,
            "scored_tokens": self.scored,
            "seconds": whole.wall,
            "cpu_seconds": whole.cpu,
            "step_seconds": self.step_seconds,
            "mfu": self.utilisation,
            "floor_seconds": self.floor_seconds,
            "floor_share": share(self.floor_seconds, self.step_seconds),
            "floor_cpu_share": self.floor_cpu_share,
            "parts": [
                {
                    "phase": place[0],
                    "part": place[1] or ("other" if place[0] in SPLIT else ""),
                    "seconds": spent.wall,
                    "cpu_seconds": spent.cpu,
                    "share": share(spent.wall, whole.wall),
                }
                for place, spent in self.rows()
            ],
        }

    @property
    def floor_cpu_share(self) -> float | None:
        """The floor as a share of the steps' processor seconds, which do not count other programs; None on a GPU."""
        between = sum(spent.cpu for (phase, _), spent in self.spent.items() if phase in BETWEEN_STEPS)
        return share(self.floor_seconds * self.threads, self.whole.cpu - between) if self.threads else None

    @property
    def whole(self) -> Spent:
        every = self.spent.values()
        return Spent(sum(each.wall for each in every), sum(each.cpu for each in every))

    def rows(self) -> list[tuple[Place, Spent]]:
        """In the order of a step; what no clock saw is left out, but for what everybody looks for."""
        known = [*ORDER, *(place for place in self.spent if place not in ORDER)]
        return [(place, self.spent.get(place, Spent())) for place in known if place in self.spent or place in ALWAYS]

    def to_text(self) -> str:
        if not self.steps:
            return f"No step was timed: the first {self.warmup} of an attempt warm up.\n"
        whole, seconds, of_cpu = self.whole, self.step_seconds, self.floor_cpu_share
        busy = "" if of_cpu is None else f", {of_cpu:.1%} of their CPU seconds"
        lines = [
            f"{self.steps:,} steps after {self.warmup} to warm up (attempt {self.attempt}): {seconds:,.2f} s, "
            f"{self.tokens / seconds:,.0f} tokens/s, {self.scored / seconds:,.0f} scored tokens/s",
            f"model FLOP utilisation {self.utilisation:.1%} of the fastest matrix product of this machine",
            f"floor: the matrix products alone take {self.floor_seconds:,.2f} s, "
            f"{share(self.floor_seconds, seconds):.1%} of the steps' time{busy}",
            "",
            f"{'part':34}{'seconds':>12}{'CPU seconds':>14}{'share':>9}",
        ]
        shown: dict[str, Spent] = {}
        for (phase, part), spent in self.rows():
            if f"{spent.wall:.3f}" == "0.000" and (phase, part) not in ALWAYS:
                continue
            if phase in SPLIT and phase not in shown:
                shown[phase] = self.sum_of(phase)
                lines.append(line(phase, shown[phase], whole))
            lines.append(line(f"  {part or 'other'}" if phase in SPLIT else phase, spent, whole))
        return "\n".join([*lines, line("all", whole, whole), ""])

    def sum_of(self, phase: str) -> Spent:
        own = [spent for (name, _), spent in self.spent.items() if name == phase]
        return Spent(sum(each.wall for each in own), sum(each.cpu for each in own))


def line(name: str, spent: Spent, whole: Spent) -> str:
    return f"{name:34}{spent.wall:12,.3f}{spent.cpu:14,.3f}{share(spent.wall, whole.wall):9.1%}"


def share(one: float, whole: float) -> float:
    return one / whole if whole else 0.0


def write_profile(run: RunDir, profile: Profile) -> None:
    """A later attempt replaces both files."""
    replace_text(run.profile_file, to_json(profile.to_json(), indent=1) + "\n")
    replace_text(run.profile_text, profile.to_text())
