"""Losses and gradients of records that share their beginnings equal those of records computed one by one."""

import math
from dataclasses import replace

import pytest
import torch
from tests.beginnings import alike
from tests.objectives import given
from tests.objectives.given import Stepped, step, with_reference
from tests.unit.models.architectures import build

from tunesmith.data.branches import forest_of
from tunesmith.data.mismatch import mismatched
from tunesmith.data.packing import batch_of
from tunesmith.objectives import DPO, KTO, ORPO, SFT, Objective, RankingReward, Reward
from tunesmith.objectives.reward_modeling import ProcessReward, Regress
from tunesmith.types import Batch

OBJECTIVES: tuple[Objective, ...] = (SFT(), DPO(), ORPO(), KTO(), Reward(), RankingReward(), Regress(), ProcessReward())


def batches(objective: Objective, *, share: bool) -> list[Batch]:
    """One microbatch that shares, or one for each record; KTO's with mismatched prompts, which share as well."""
    examples = alike(objective.kind, objective.reads)
    longest = max(map(len, examples))
    joined = [mismatched(one, examples[number - 3], longest) for number, one in enumerate(examples) if one.cuts]
    groups = [range(len(examples))] if share else [[place] for place in range(len(examples))]
    made = []
    for group in groups:
        one = with_reference(batch_of([examples[place] for place in group], objective.reads, group, share=share))
        if objective.kind == "feedback":
            others = batch_of([joined[place] for place in group], objective.reads, group, share=share)
            one = replace(one, mismatched=with_reference(others))
        made.append(one)
    return made


def assert_exact(shared: Stepped, apart: Stepped) -> None:
    assert shared.count == apart.count
    assert math.isclose(shared.loss, apart.loss, rel_tol=1e-6, abs_tol=1e-6)
    assert shared.metrics == pytest.approx(apart.metrics, rel=1e-5, abs=1e-6)
    for one, other in zip(shared.gradients, apart.gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * (1 + other.abs().max().item()), rtol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda one: one.title)
def test_sharing_is_exact(objective):
    shared, apart = batches(objective, share=True), batches(objective, share=False)
    assert sum(len(one.tokens) for one in shared) < 0.65 * sum(len(one.tokens) for one in apart)
    assert_exact(step(objective, shared), step(objective, apart))


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "qwen3", "olmo2"])
def test_sharing_is_exact_in_every_kind_of_attention(architecture, monkeypatch):
    monkeypatch.setattr(given, "build", lambda name: build(architecture))
    assert_exact(step(DPO(), batches(DPO(), share=True)), step(DPO(), batches(DPO(), share=False)))


def test_these_records_share_at_two_levels():
    (root,) = [branch for branch in forest_of(alike("pair")) if branch.children]
    assert any(child.children for child in root.children)
