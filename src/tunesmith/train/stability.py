"""The numerical guard: whether a step's loss and gradient norm may reach the weights."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tunesmith.errors import Fix, NumericalError
from tunesmith.train.config import StabilityConfig

SMALLEST_SPREAD = 1e-3  # share of the mean: a flat window must not turn rounding into a spike
WORSE_THAN_GUESSING = 2.0  # nats of a token: beyond what unlucky batches of a poor model reach
AWAY = 2.0  # times the first loss, of tokens
FAR_AWAY = 10.0  # times it, and at least this, of losses whose range nobody knows
CODES = {"nonfinite": "E120", "spike": "E121", "too late": "E122", "diverged": "E530"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a step; `evidence` (JSON-able, for `bad_batches/`) is empty for an update and for a step of fp16
    that is left out for its loss scale alone."""

    action: Literal["update", "skip", "rollback", "stop", "rescale"]
    reason: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)

    def too_late(self) -> Verdict:
        """The same, of a step whose updates ran in the backward pass: it can no longer be left out."""
        if self.evidence["kind"] == "diverged":
            return self
        return replace(self, action="stop", evidence={**self.evidence, "kind": "too late"})

    def error(self, checkpoint: Path | None, rate: float) -> NumericalError:
        """The error that ends a run of this peak rate, naming the last good checkpoint."""
        kind = self.evidence["kind"]
        records = ", ".join(self.evidence["records"][:10]) or "unknown"
        if kind == "diverged":
            bad = f"too high since step {self.evidence['since']}: checkpoints from there on hold what diverged"
        else:
            bad = f"{self.evidence['skips_in_a_row']} bad steps in a row"
        named = "newest" if kind == "diverged" else "last good"
        last = f"{named} checkpoint: {checkpoint}" if checkpoint else "no checkpoint was saved yet"
        return NumericalError(
            CODES[kind],
            f"step {self.evidence['step']}: {self.reason}",
            evidence=(bad, f"records: {records}", last),
            fixes=(
                *wider_range(self.evidence.get("loss_scale")),
                Fix(f"train.optimizer.lr={rate / 10:g}", {"train.optimizer.lr": rate / 10}, effect="the usual cause"),
                Fix("look at the records named here and at bad_batches/ of the run"),
            ),
        )


def wider_range(scale: float | None) -> tuple[Fix, ...]:
    """What helps gradients that are too large for fp16 even at the smallest loss scale."""
    if scale is None:
        return ()
    effect = f"fp16 ends at 65,504, and its loss scale is down to {scale:g}"
    return (Fix("model.dtype=bfloat16", {"model.dtype": "bfloat16"}, effect=effect),)


class Guard:
    """Judges every step BEFORE its update; give it the loss and gradient norm that all ranks share.

    A spike is a loss or norm above mean + sigma * spread of the last accepted ones, once half the window is filled.
    Non-finite steps and spikes in a row count together: `max_skips` of them stop the run. From the first step on, so
    do `diverged_steps` whose loss is far above the first one, less those that came back in between; `guess` is the loss
    of a blind guess, None where the loss is no cross-entropy.
    """

    def __init__(self, settings: StabilityConfig, guess: float | None = None) -> None:
        self._settings = settings
        self._guess = guess
        self._first: float | None = None  # before any update, so that no rate has a share in it
        self._far = 0  # steps far above it, less those that were not since
        self._left = 0  # the step that began to count
        self._losses: deque[float] = deque(maxlen=settings.window)
        self._norms: deque[float] = deque(maxlen=settings.window)
        self.in_a_row = 0
        self.skipped = 0

    def judge(self, step: int, loss: float, grad_norm: float, records: Sequence[str] = ()) -> Verdict:
        """Decide on a step; an accepted one enters the window, a skipped one does not."""
        reason, kind = self._fault(loss, grad_norm)
        if not reason:
            self._losses.append(loss)
            self._norms.append(grad_norm)
            self.in_a_row = 0
            return self._distance(step, loss, grad_norm, records)
        self.in_a_row += 1
        stop = self.in_a_row >= self._settings.max_skips or (
            kind == "nonfinite" and self._settings.on_nonfinite == "stop"
        )
        self.skipped += not stop
        evidence = {"step": step, "kind": kind, "reason": reason, "skips_in_a_row": self.in_a_row}
        evidence |= figures(loss, grad_norm, records)
        instead = "rollback" if kind == "spike" and self._settings.on_spike == "rollback" else "skip"
        return Verdict("stop" if stop else instead, reason, evidence)

    def _fault(self, loss: float, grad_norm: float) -> tuple[str, str]:
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                return f"the {name} is {value}", "nonfinite"
        if self._settings.on_spike != "off":
            for name, value, window in (("loss", loss, self._losses), ("gradient norm", grad_norm, self._norms)):
                limit = self._limit(window)
                if value > limit:
                    return (
                        f"the {name} {value:.4g} is above {limit:.4g}, {self._settings.sigma:g} sigma of its window",
                        "spike",
                    )
        return "", ""

    def _distance(self, step: int, loss: float, grad_norm: float, records: Sequence[str]) -> Verdict:
        """An update, unless too many losses in a row were far from where the run began."""
        self._first = loss if self._first is None else self._first
        limit = self._far_from(self._first)
        self._left = step if self._far == 0 else self._left
        self._far = self._far + 1 if loss > limit else max(0, self._far - 1)
        if self._settings.diverged_steps == 0 or self._far < self._settings.diverged_steps:
            return Verdict("update")
        reason = f"the loss {loss:.4g} is above {limit:.4g}, and was {self._first:.4g} at first: the run has diverged"
        evidence = {"step": step, "kind": "diverged", "reason": reason, "since": self._left}
        return Verdict("stop", reason, evidence | figures(loss, grad_norm, records))

    def _far_from(self, first: float) -> float:
        if self._guess is None:
            return FAR_AWAY * max(abs(first), 1.0)
        return max(self._guess + WORSE_THAN_GUESSING, AWAY * first)

    def _limit(self, window: deque[float]) -> float:
        if len(window) < self._settings.window // 2:
            return math.inf
        mean = statistics.fmean(window)
        return mean + self._settings.sigma * max(statistics.stdev(window, mean), SMALLEST_SPREAD * abs(mean))

    def state(self) -> dict[str, Any]:
        """JSON-able and exact: floats as hex, so that decisions after a resume are the same."""
        return {
            "losses": [value.hex() for value in self._losses],
            "norms": [value.hex() for value in self._norms],
            "in_a_row": self.in_a_row,
            "skipped": self.skipped,
            "first": None if self._first is None else self._first.hex(),
            "far": self._far,
            "left": self._left,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._losses = deque(map(float.fromhex, state["losses"]), maxlen=self._settings.window)
        self._norms = deque(map(float.fromhex, state["norms"]), maxlen=self._settings.window)
        self.in_a_row = state["in_a_row"]
        self.skipped = state["skipped"]
        self._first = None if state["first"] is None else float.fromhex(state["first"])
        self._far, self._left = state["far"], state["left"]


def figures(loss: float, grad_norm: float, records: Sequence[str]) -> dict[str, Any]:
    """The evidence that every verdict has."""
    return {"loss": repr(loss), "grad_norm": repr(grad_norm), "records": list(records)}


def nonfinite_gradients(parameters: Iterable[tuple[str, Tensor]], limit: int = 5) -> list[str]:
    """Names of the first parameters whose gradient holds NaN or Inf."""
    found: list[str] = []
    for name, parameter in parameters:
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            found.append(name)
            if len(found) == limit:
                break
    return found
