"""The largest gradient norm of a step: a number, or what the norms of the run so far say."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from tunesmith.train.config import AdaptiveClipConfig, TrainConfig
from tunesmith.train.stability import SMALLEST_SPREAD


class Clipper:
    """Tells each step's limit and remembers its norm; give it the norms of steps that update, in their order."""

    def __init__(self, fixed: float) -> None:
        self.fixed = fixed or math.inf

    def limit(self, norm: float) -> float:
        """The norm that this step's gradient may have; inf without a limit."""
        return self.fixed

    def state(self) -> dict[str, Any]:
        """JSON-able and exact: floats as hex."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


class ZScoreClipper(Clipper):
    """ZClip (arXiv:2504.02507): a norm z > threshold deviations above the running mean becomes mean + threshold² / z.

    The norm as it is after clipping enters mean and variance, so that one spike does not raise the limit of the next.
    """

    def __init__(self, fixed: float, settings: AdaptiveClipConfig) -> None:
        super().__init__(fixed)
        self.settings = settings
        self.first: list[float] = []  # norms of the warm-up
        self.mean, self.variance = 0.0, 0.0

    def limit(self, norm: float) -> float:
        settings = self.settings
        if len(self.first) < settings.warmup:
            self.first.append(min(norm, self.fixed))
            if len(self.first) == settings.warmup:
                self.mean, self.variance = float(np.mean(self.first)), float(np.var(self.first))
            return self.fixed
        spread = max(math.sqrt(self.variance), SMALLEST_SPREAD * self.mean, 1e-12)
        z = (norm - self.mean) / spread
        own = self.mean + settings.threshold**2 / z * spread if z > settings.threshold else math.inf
        limit = min(own, self.fixed)
        seen = min(norm, limit)
        self.variance = settings.decay * self.variance + (1 - settings.decay) * (seen - self.mean) ** 2
        self.mean = settings.decay * self.mean + (1 - settings.decay) * seen
        return limit

    def state(self) -> dict[str, Any]:
        return {
            "first": [norm.hex() for norm in self.first],
            "mean": self.mean.hex(),
            "variance": self.variance.hex(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.first = [float.fromhex(norm) for norm in state["first"]]
        self.mean, self.variance = float.fromhex(state["mean"]), float.fromhex(state["variance"])


class PercentileClipper(Clipper):
    """AutoClip (arXiv:2007.14469): the limit is a percentile of the norms so far, the step's own among them."""

    def __init__(self, fixed: float, settings: AdaptiveClipConfig) -> None:
        super().__init__(fixed)
        self.settings = settings
        self.norms: deque[float] = deque(maxlen=settings.window)

    def limit(self, norm: float) -> float:
        self.norms.append(norm)
        return min(float(np.percentile(self.norms, self.settings.percentile)), self.fixed)

    def state(self) -> dict[str, Any]:
        return {"norms": [norm.hex() for norm in self.norms]}

    def restore(self, state: dict[str, Any]) -> None:
        self.norms = deque(map(float.fromhex, state["norms"]), maxlen=self.settings.window)


def make_clipper(settings: TrainConfig) -> Clipper:
    if settings.adaptive_clip is None:
        return Clipper(settings.clip_norm)
    kind = ZScoreClipper if settings.adaptive_clip.rule == "zscore" else PercentileClipper
    return kind(settings.clip_norm, settings.adaptive_clip)
