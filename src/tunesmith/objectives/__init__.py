"""Objectives: scores become a loss. The tuple is the registry; adding a class to it adds the method everywhere."""

from tunesmith.objectives.anchored import BCO, NCA, SPPO, APODown, APOZero
from tunesmith.objectives.base import Objective
from tunesmith.objectives.distributional import AOT
from tunesmith.objectives.feedback import KTO, APOZeroUnpaired, BCOUnpaired
from tunesmith.objectives.language_modeling import SFT
from tunesmith.objectives.preference import (
    DPO,
    EXO,
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
from tunesmith.objectives.reference_free import CPO, ORPO, SimPO
from tunesmith.objectives.retention import K3ToReference, KLToReference
from tunesmith.objectives.reward_modeling import Classify, ProcessReward, RankingReward, Regress, Reward

OBJECTIVES: tuple[type[Objective], ...] = (
    SFT,
    DPO,
    ConservativeDPO,
    RobustDPO,
    IPO,
    Hinge,
    EXO,
    RPO,
    LengthNormalisedDPO,
    LengthDesensitisedDPO,
    DivergenceDPO,
    DiscoPOP,
    NCA,
    SPPO,
    APOZero,
    APODown,
    BCO,
    AOT,
    SimPO,
    CPO,
    ORPO,
    KTO,
    APOZeroUnpaired,
    BCOUnpaired,
    Reward,
    RankingReward,
    Classify,
    Regress,
    ProcessReward,
    KLToReference,
    K3ToReference,
)

__all__ = ["DPO", "KTO", "OBJECTIVES", "SFT", "Classify", "Objective", "ProcessReward", "RankingReward", "Reward"]
