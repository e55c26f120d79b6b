"""Objectives: scores become a loss. The tuple is the registry; adding a class to it adds the method everywhere."""

from tunesmith.objectives.base import Objective
from tunesmith.objectives.language_modeling import SFT
from tunesmith.objectives.preference import (
    DPO,
    IPO,
    RPO,
    ConservativeDPO,
    DiscoPOP,
    DivergenceDPO,
    Hinge,
    LengthDesensitisedDPO,
    LengthNormalisedDPO,
    RobustDPO,
)

OBJECTIVES: tuple[type[Objective], ...] = (
    SFT,
    DPO,
    ConservativeDPO,
    RobustDPO,
    IPO,
    Hinge,
    RPO,
    LengthNormalisedDPO,
    LengthDesensitisedDPO,
    DivergenceDPO,
    DiscoPOP,
)

__all__ = ["DPO", "OBJECTIVES", "SFT", "Objective"]
