"""What the losses of a run at a rising learning rate say about the rate to choose (arXiv:1506.01186, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.errors import Fix, NumericalError
from tunesmith.track.plot import smoothed

FEWEST = 10  # steps that say anything
SETTLED = 5  # first steps that tell where the loss starts
GONE = 2.0  # times the best loss so far: it will not come back
BELOW = 4.0  # a suggested rate is at least so many times smaller than that of the lowest loss


@dataclass(frozen=True, slots=True)
class RateCurve:
    """Rates with the smoothed loss at each, and the ones that matter."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    steepest: float  # where the loss falls fastest
    lowest: float  # where it is lowest: one step on it rises again
    suggested: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the last loss of a rising rate is so far above the best that more steps teach nothing."""
    if not math.isfinite(losses[-1]):
        return True
    smooth = smoothed(losses)
    return len(losses) >= FEWEST and smooth[-1] > GONE * min(smooth)


def read_curve(rates: Sequence[float], losses: Sequence[float]) -> RateCurve:
    """Raise NumericalError E340 when the loss fell at no rate: nothing can be suggested then."""
    known = [(rate, loss) for rate, loss in zip(rates, losses, strict=True) if math.isfinite(loss)]
    smooth = smoothed([loss for _, loss in known])
    low = min(range(len(smooth)), key=smooth.__getitem__, default=0)
    start = max(smooth[:SETTLED], default=0.0)
    if low < SETTLED or not smooth[low] < start:
        raise NumericalError(
            "E340",
            f"the loss fell at no rate between {rates[0]:.1e} and {rates[len(known) - 1]:.1e}",
            evidence=[f"{len(known)} steps, from {start:.4f} to {smooth[-1]:.4f}" if known else "no step was finite"],
            fixes=[Fix("begin lower: --from 1e-8", effect="when it rose at once"), Fix("take more steps: --steps 300")],
        )
    logs = [math.log(rate) for rate, _ in known]
    falls = {i: (smooth[i] - smooth[i - 2]) / (logs[i] - logs[i - 2]) for i in range(SETTLED, low + 1)}
    steepest, lowest = known[min(falls, key=falls.__getitem__)][0], known[low][0]
    found, suggested = tuple(rate for rate, _ in known), rounded(min(steepest, lowest / BELOW))
    return RateCurve(found, tuple(smooth), steepest, lowest, suggested)


def rounded(rate: float) -> float:
    """Down to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rate) + 1e-9)
    first = next(first for first in (5, 2, 1) if first * power <= rate * (1 + 1e-9))
    return float(f"{first * power:.0e}")
