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


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a step; `evidence` (JSON-able, for `bad_batches/`) is empty for an update and for a step of fp16
    that is left out for its loss scale alone."""

    action: Literal["update", "skip", "rollback", "stop", "rescale"]
    reason: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)

    def too_late(self) -> Verdict:
        """The same, of a step whose updates ran in the backward pass: it can no longer be left out."""
        return replace(self, action="stop", evidence={**self.evidence, "kind": "too late"})

    def error(self, checkpoint: Path | None) -> NumericalError:
        """The error that ends the run, naming the last good checkpoint."""
        records = ", ".join(self.evidence["records"][:10]) or "unknown"
        last = f"last good checkpoint: {checkpoint}" if checkpoint else "no checkpoint was saved yet"
        return NumericalError(
            {"nonfinite": "E120", "spike": "E121", "too late": "E122"}[self.evidence["kind"]],
            f"step {self.evidence['step']}: {self.reason}",
            evidence=(f"{self.evidence['skips_in_a_row']} bad steps in a row", f"records: {records}", last),
            fixes=(
                Fix("lower the learning rate", effect="the usual cause"),
                Fix("look at the records named here and at bad_batches/ of the run"),
            ),
        )


class Guard:
    """Judges every step BEFORE its update; give it the loss and gradient norm that all ranks share.

    A spike is a loss or norm above mean + sigma * spread of the last accepted ones, once half the window is filled.
    Non-finite steps and spikes in a row count together: `max_skips` of them stop the run.
    """

    def __init__(self, settings: StabilityConfig) -> None:
        self._settings = settings
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
            return Verdict("update")
        self.in_a_row += 1
        stop = self.in_a_row >= self._settings.max_skips or (
            kind == "nonfinite" and self._settings.on_nonfinite == "stop"
        )
        self.skipped += not stop
        evidence = {
            "step": step,
            "kind": kind,
            "reason": reason,
            "loss": repr(loss),
            "grad_norm": repr(grad_norm),
            "skips_in_a_row": self.in_a_row,
            "records": list(records),
        }
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
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._losses = deque(map(float.fromhex, state["losses"]), maxlen=self._settings.window)
        self._norms = deque(map(float.fromhex, state["norms"]), maxlen=self._settings.window)
        self.in_a_row = state["in_a_row"]
        self.skipped = state["skipped"]


def nonfinite_gradients(parameters: Iterable[tuple[str, Tensor]], limit: int = 5) -> list[str]:
    """Names of the first parameters whose gradient holds NaN or Inf."""
    found: list[str] = []
    for name, parameter in parameters:
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            found.append(name)
            if len(found) == limit:
                break
    return found
