"""Laws that every objective of the registry obeys: splitting, packing, silence and extremes."""

import math
import re

import numpy as np
import pytest
import torch
from tests.unit.models.architectures import VOCABULARY, build

from tunesmith.data.packing import Node, assemble
from tunesmith.distributed.mesh import Mesh
from tunesmith.models.adapters import trainable
from tunesmith.objectives import OBJECTIVES
from tunesmith.train.config import OptimizerConfig
from tunesmith.train.optimizer import Optimizer
from tunesmith.train.step import compute_step
from tunesmith.types import Batch, Scores

every_objective = pytest.mark.parametrize(
    "objective", [kind() for kind in OBJECTIVES], ids=lambda one: type(one).__name__
)


def nodes() -> list[Node]:
    rng = np.random.default_rng(5)
    made = []
    for length in (7, 12, 4, 19, 9, 15):
        weights = np.where(np.arange(length) > length // 3, rng.choice([0.5, 1.0, 2.0], length), 0).astype(np.float32)
        made.append(Node(rng.integers(3, VOCABULARY, length), weights))
    return made


def step(objective, groups: list[list[Node]], alpha: float = 0.0):
    model = build("llama")
    optimizer = Optimizer(trainable(model), OptimizerConfig())
    result = compute_step(model, [assemble(group) for group in groups], objective, optimizer, Mesh(), alpha)
    return result, optimizer.gradients()


@every_objective
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_microbatches_change_neither_loss_nor_gradient(objective, cut):
    together, whole = step(objective, [nodes()])
    apart, parts = step(objective, [nodes()[i : i + cut] for i in range(0, 6, cut)])
    assert math.isclose(together.loss, apart.loss, rel_tol=1e-6)
    assert math.isclose(together.grad_norm, apart.grad_norm, rel_tol=1e-5)
    assert together.metrics == pytest.approx(apart.metrics)
    for one, two in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


@every_objective
def test_a_step_with_nothing_scored_is_zero_and_finite(objective):
    silent = [Node(node.tokens, np.zeros_like(node.weights)) for node in nodes()]
    result, gradients = step(objective, [silent])
    assert result.loss == 0.0
    assert result.count == 0.0
    assert result.grad_norm == 0.0
    assert all(torch.all(gradient == 0) for gradient in gradients)


@every_objective
def test_extreme_scores_stay_finite(objective):
    batch = assemble(nodes())
    for value in (0.0, -1e-12, -88.0, -1e4):
        logprobs = torch.full((len(batch.target),), value, requires_grad=True)
        loss = objective(Scores(logprobs, torch.zeros(len(batch.target))), batch)
        loss.sum.backward()
        assert torch.isfinite(loss.sum)
        assert torch.isfinite(logprobs.grad).all()


@every_objective
def test_metrics_are_the_ones_announced(objective):
    batch = assemble(nodes())
    zeros = torch.zeros(len(batch.target))
    assert tuple(objective(Scores(zeros, zeros), batch).metrics) == objective.metric_names


@every_objective
def test_a_paper_is_cited(objective):
    assert re.fullmatch(r"arXiv:\d{4}\.\d{4,5}", objective.paper)


def test_neftune_noise_changes_the_loss_and_is_bounded_by_its_formula():
    torch.manual_seed(0)
    noisy, _ = step(OBJECTIVES[0](), [nodes()], alpha=5.0)
    calm, _ = step(OBJECTIVES[0](), [nodes()])
    assert noisy.loss != calm.loss
    assert abs(noisy.loss - calm.loss) < 1.0


def test_batches_move_whole():
    batch = assemble(nodes())
    moved = batch.to("cpu")
    assert isinstance(moved, Batch)
    assert moved.records == batch.records
