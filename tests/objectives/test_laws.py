"""Laws that every objective of the registry obeys: splitting, order, sharing, silence and extremes."""

import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tests.objectives.given import CLASSES, Stepped, batch, given, silent, step
from tests.unit.models.architectures import build

from tunesmith.distributed.mesh import Mesh
from tunesmith.models.adapters import trainable
from tunesmith.objectives import DPO, KTO, OBJECTIVES, SFT, Objective, RankingReward, Reward
from tunesmith.objectives.distributional import AOT
from tunesmith.objectives.preference import IPO, DivergenceDPO, LengthDesensitisedDPO
from tunesmith.train.optimizer import Optimizer
from tunesmith.train.optimizers import AdamW
from tunesmith.train.step import compute_step
from tunesmith.types import Batch, Context, Kind, Scores

WITH_OPTIONS: tuple[Objective, ...] = (  # objectives whose options choose another equation
    DPO(wpo=True),
    IPO(reduction="sum"),
    DivergenceDPO(divergence="js"),
    DivergenceDPO(divergence="alpha", alpha=0.3),
    LengthDesensitisedDPO(alpha=0.0),
    AOT(pairing="unpaired"),
    KTO(lambda_good=1.0, lambda_bad=1.3),
    SFT(z_loss=0.01),
    Reward(margin=0.2, rating_margin=0.5, center=0.01),
    RankingReward(comparison="plackett_luce"),
)
EVERY: list[tuple[Objective, Kind]] = [(one, one.kind) for one in (*(kind() for kind in OBJECTIVES), *WITH_OPTIONS)]
EVERY += [(OBJECTIVES[0](), kind) for kind in ("pair", "feedback", "ranking")]  # likelihood beside another loss
MEMORY = {"bco/shift": -0.2}


def those(wanted: Callable[[Objective], object]) -> pytest.MarkDecorator:
    """A test for every objective of which something holds."""
    chosen = [(one, kind) for one, kind in EVERY if wanted(one)]
    names = [f"{one!r}-{kind}".replace(" ", "").replace("coefficient=1.0,", "") for one, kind in chosen]
    return pytest.mark.parametrize(("objective", "kind"), chosen, ids=names)


every_objective = those(lambda one: True)


def assert_same(one: Stepped, other: Stepped) -> None:
    assert one.count == other.count
    assert math.isclose(one.loss, other.loss, rel_tol=1e-5, abs_tol=1e-6)
    assert one.metrics == pytest.approx(other.metrics, rel=1e-4, abs=1e-5)
    for left, right in zip(one.gradients, other.gradients, strict=True):
        torch.testing.assert_close(left, right, atol=1e-6 * (1 + left.abs().max().item()), rtol=1e-4)


def scores_of(objective: Objective, one: Batch, fill: torch.Tensor | float) -> Scores:
    """Scores of one value, or of the values given (for a head, of each row or of each number)."""
    shape = (len(one.target), CLASSES) if objective.reads == "values" else (len(one.target),)
    values = (torch.zeros(shape) + fill).requires_grad_()
    if objective.reads == "values":
        return Scores(torch.zeros(0), torch.zeros(0), values)
    return Scores(values, torch.zeros(shape), log_z=-values, divergence=-values)


def leaf(scores: Scores) -> torch.Tensor:
    return scores.logprobs if scores.values is None else scores.values


def context_of(objective: Objective, scores: Scores, one: Batch) -> Context:
    """What a step of this one batch would hand over; the scores stand for those of the mismatched answers as well."""
    if not objective.looks_ahead:
        return Context(memory=MEMORY)
    if one.mismatched is None:
        return Context(objective.glance(scores, one).detach(), MEMORY)
    other = one.mismatched
    fill = scores.logprobs.detach().mean() if len(scores.logprobs) else 0.0
    return Context(objective.glance(scores_of(objective, other, fill), other).detach(), MEMORY)


@every_objective
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_x11_microbatches_change_neither_loss_nor_gradient(objective, kind, cut):
    made = given(objective, kind)
    together = step(objective, [batch(objective, made)], MEMORY)
    apart = step(objective, [batch(objective, made[i : i + cut]) for i in range(0, 6, cut)], MEMORY)
    assert_same(together, apart)
    assert together.count > 0


@those(lambda one: one.reads == "logprobs")
def test_a_real_step_gives_the_same(objective, kind):
    made = given(objective, kind)
    batches = [batch(objective, made[:4]), batch(objective, made[4:])]
    optimizer = Optimizer(trainable(model := build("llama")), AdamW())
    real = compute_step(model, batches, [objective], optimizer, Mesh(), memory=MEMORY)
    ours = step(objective, batches, MEMORY)
    assert real.counts == (ours.count,)
    assert math.isclose(real.loss, ours.loss, rel_tol=1e-6)
    assert real.metrics == pytest.approx(ours.metrics, rel=1e-5)
    norm = torch.stack([gradient.norm() for gradient in ours.gradients]).norm().item()
    assert math.isclose(real.grad_norm, norm, rel_tol=1e-5)


@those(lambda one: one.looks_ahead)
def test_a_step_of_ranks_without_units_hands_over_no_rows(objective, kind):
    one = batch(objective, [silent(made) for made in given(objective, kind)])
    scores = scores_of(objective, one, -1.0)
    assert objective(scores, one, Context(torch.zeros(0, 0))).sum.item() == 0


@every_objective
def test_the_order_of_examples_is_irrelevant(objective, kind):
    made = given(objective, kind)
    mixed = [made[i] for i in (3, 0, 5, 1, 4, 2)]
    forwards = step(objective, [batch(objective, made[:4]), batch(objective, made[4:])], MEMORY)
    assert_same(forwards, step(objective, [batch(objective, mixed[:2]), batch(objective, mixed[2:])], MEMORY))


@every_objective
def test_a_shared_prompt_equals_a_copy_for_every_answer(objective, kind):
    made = given(objective, kind)
    shared = step(objective, [batch(objective, made)], MEMORY)
    assert_same(shared, step(objective, [batch(objective, made, unshared=True)], MEMORY))


@every_objective
def test_examples_with_nothing_scored_change_nothing(objective, kind):
    made = given(objective, kind)
    alone = step(objective, [batch(objective, made[:4])], MEMORY)
    beside = step(
        objective, [batch(objective, [*made[:4], silent(made[4])]), batch(objective, [silent(made[5])])], MEMORY
    )
    assert_same(alone, beside)


@pytest.mark.row("N7")
@every_objective
def test_a_step_with_nothing_scored_is_zero_and_finite(objective, kind):
    result = step(objective, [batch(objective, [silent(one) for one in given(objective, kind)])], MEMORY)
    assert result.loss == 0.0
    assert result.count == 0.0
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert all(torch.all(gradient == 0) for gradient in result.gradients)


@every_objective
def test_extreme_scores_stay_finite(objective, kind):
    one = batch(objective, given(objective, kind))
    for value in (0.0, -1e-12, -88.0, -1e4, None):
        wild = -((torch.arange(len(one.target)) * 37 % 11).float() ** 4)
        if objective.reads == "values":
            wild = wild[:, None] * torch.tensor([1.0, -1.0, 0.5])
        scores = scores_of(objective, one, wild if value is None else value)
        loss = objective(scores, one, context_of(objective, scores, one))
        loss.sum.backward()
        assert torch.isfinite(loss.sum)
        assert all(torch.isfinite(figure) for figure in loss.metrics.values())
        assert torch.isfinite(leaf(scores).grad).all()


@every_objective
def test_metrics_are_the_ones_announced_and_carry_no_gradient(objective, kind):
    one = batch(objective, given(objective, kind))
    scores = scores_of(objective, one, -1.0)
    metrics = objective(scores, one, context_of(objective, scores, one)).metrics
    assert tuple(metrics) == objective.metric_names
    assert not any(figure.requires_grad for figure in metrics.values())


@every_objective
def test_nothing_but_the_policy_has_a_gradient(objective, kind):
    one = batch(objective, given(objective, kind))
    reference = one.streams["ref_logprobs"].requires_grad_()
    one = replace(one, streams={"ref_logprobs": reference})
    near = reference.detach() + torch.linspace(-0.1, 0.1, len(reference))
    scores = scores_of(objective, one, near if objective.reads == "logprobs" else near[:, None])
    context = context_of(objective, scores, one)
    if context.rows is not None:
        context.rows.requires_grad_()
    objective(scores, one, context).sum.backward()
    assert reference.grad is None
    assert context.rows is None or context.rows.grad is None
    assert leaf(scores).grad.abs().sum() > 0


@every_objective
def test_a_paper_is_cited(objective, kind):
    assert re.fullmatch(r"arXiv:\d{4}\.\d{4,5}", objective.paper)


@those(lambda one: one.start_loss() is not None)
def test_the_first_loss_is_the_one_announced(objective, kind):
    one = batch(objective, given(objective, kind))
    start = torch.linspace(-3, -1, len(one.target))
    one = replace(one, streams={"ref_logprobs": start})
    nothing = torch.zeros_like(start)
    scores = Scores(start.clone().requires_grad_(), nothing, divergence=nothing)
    context = Context()
    if objective.looks_ahead:
        seen = one if one.mismatched is None else one.mismatched
        seen = replace(seen, streams={"ref_logprobs": torch.full((len(seen.target),), -2.0)})
        rows = objective.glance(Scores(torch.full((len(seen.target),), -2.0), torch.zeros(0)), seen)
        if one.mismatched is None:
            rows = objective.glance(scores, one)
        context = Context(rows.detach())
    loss = objective(scores, one, context)
    assert math.isclose(loss.sum.item() / objective.count(one), objective.start_loss(), rel_tol=1e-5)


@those(lambda one: one.kind == "pair" and one.reads == "logprobs")
def test_swapping_chosen_and_rejected_turns_the_margin_around(objective, kind):
    one = batch(objective, given(objective))
    flip = torch.arange(len(one.group)).view(-1, 2).flip(1).flatten()
    order = torch.cat([torch.nonzero(one.sequence == flip[s]).flatten() for s in range(len(flip))])
    swapped = replace(
        one,
        sequence=flip[one.sequence[order]],
        target=one.target[order],
        weight=one.weight[order],
        streams={name: stream[order] for name, stream in one.streams.items()},
    )
    values = torch.linspace(-3, -1, len(one.target))
    before, after = (
        objective(scores, each, context_of(objective, scores, each)).metrics
        for each, scores in (
            (one, scores_of(objective, one, values)),
            (swapped, scores_of(objective, swapped, values[order])),
        )
    )
    for name in ("rewards", "logps", "length"):
        assert math.isclose(before[f"{name}/chosen"], after[f"{name}/rejected"], rel_tol=1e-5)
    assert math.isclose(before["rewards/margin"], -after["rewards/margin"], rel_tol=1e-4)
    assert math.isclose(before["rewards/accuracy"] + after["rewards/accuracy"], objective.count(one))


def test_batches_move_whole():
    one = batch(OBJECTIVES[0](), given(OBJECTIVES[0](), "pair"))
    moved = one.to("cpu")
    assert isinstance(moved, Batch)
    assert moved.records == one.records
    assert torch.equal(moved.imitated, one.imitated)
