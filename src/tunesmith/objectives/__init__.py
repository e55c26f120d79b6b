"""Objectives: scores become a loss. The tuple is the registry; adding a class to it adds the method everywhere."""

from tunesmith.objectives.base import Objective
from tunesmith.objectives.language_modeling import SFT

OBJECTIVES: tuple[type[Objective], ...] = (SFT,)

__all__ = ["OBJECTIVES", "SFT", "Objective"]
