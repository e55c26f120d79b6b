"""What layers keep for the backward pass, and how many of them keep how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Policy = Literal["off", "selective", "full", "offloaded"]


@dataclass(frozen=True, slots=True)
class Checkpointing:
    """Layers of each policy, counted up from the lowest that the backward pass reaches; all above keep everything.

    The lowest layers form most anew, because theirs is the memory that is still held when the peak is reached.
    """

    offloaded: int = 0
    full: int = 0
    selective: int = 0

    @property
    def layers(self) -> int:
        return self.offloaded + self.full + self.selective

    def of_layer(self, number: int) -> Policy:
        """The policy of a layer; `number` counts from the lowest one that the backward pass reaches."""
        if number < 0 or number >= self.layers:
            return "off"
        if number < self.offloaded:
            return "offloaded"
        return "full" if number < self.offloaded + self.full else "selective"

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    @staticmethod
    def of_json(content: Mapping[str, Any]) -> Checkpointing:
        return Checkpointing(*(int(content.get(name, 0)) for name in ("offloaded", "full", "selective")))


EVERY = 10**6  # more layers than any model has


def everywhere(policy: Policy) -> Checkpointing:
    """One policy for all layers."""
    return Checkpointing() if policy == "off" else Checkpointing.of_json({policy: EVERY})
