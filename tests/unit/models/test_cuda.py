"""Attention, scores and training steps on a GPU equal the CPU's; run with `pytest -m gpu`."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.unit.models.architectures import build
from tests.unit.models.test_forest import PAIRS, RANKINGS, STEPS, Tree, example_of, with_lora
from tests.unit.models.test_forward import all_scored, sequences
from torch import nn

from tunesmith.data.packing import assemble, batch_of
from tunesmith.distributed.mesh import Mesh
from tunesmith.models import attention
from tunesmith.models.adapters import trainable
from tunesmith.models.attention_cuda import Shape, cuda_attention, flex, varlen
from tunesmith.models.forest import Forest
from tunesmith.models.forward import score
from tunesmith.objectives import SFT
from tunesmith.train.optimizer import Optimizer
from tunesmith.train.optimizers import AdamW
from tunesmith.train.step import compute_step
from tunesmith.types import Batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

SHAPES: dict[str, list[tuple[int, int, int]]] = {
    "flat": [(0, 7, -1), (7, 300, -1), (300, 301, -1), (301, 640, -1)],
    "pairs": [(0, 140, -1), (140, 170, 0), (170, 201, 0), (201, 420, -1), (420, 450, 3), (450, 680, 3)],
    "many answers": [(0, 260, -1), *((260 + 20 * n, 280 + 20 * n, 0) for n in range(9))],
    "chain": [(0, 130, -1), (130, 200, 0), (200, 430, 1), (430, 431, 2), (431, 440, 1)],
}
HEADS = [(4, 4), (4, 2), (8, 1)]  # of queries and of keys
WINDOWS = [None, 1, 33]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}  # of the largest entry


def inputs(total: int, heads: tuple[int, int], width: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries, keys, values and the gradient of the output; rounded, so that both sides begin with the same."""
    made = torch.Generator().manual_seed(5)
    counts = (heads[0], heads[1], heads[1])
    rows = [torch.randn(total, count, width, generator=made).transpose(0, 1) for count in counts]
    rows.append(torch.randn(total, heads[0], width, generator=made))
    return [states.to(dtype) for states in rows]


def with_gradients(run, states: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output of `run` and the gradients of query, key and value."""
    leaves = [part.detach().clone().requires_grad_() for part in states[:3]]
    out = run(*leaves)
    out.backward(states[3])
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def assert_equals_dense(run, name: str, heads: tuple[int, int], window: int | None, dtype: torch.dtype) -> None:
    forest = Forest.of(torch.tensor(SHAPES[name]))
    states = inputs(SHAPES[name][-1][1], heads, 64, dtype)

    def dense(query, key, value):
        parts = (query[None], key[None], value[None])
        return attention.dense_attention(nn.Identity(), *parts, None, forest=forest, sliding_window=window)[0][0]

    wanted = with_gradients(dense, [part.float() for part in states])
    found = with_gradients(lambda *parts: run(*parts, forest), [part.cuda() for part in states])
    assert len(found) == len(wanted) == 4
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == dtype
        difference = (ours.cpu().float() - theirs).abs().max()
        assert difference <= TOLERANCE[dtype] * theirs.abs().max()


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", SHAPES)
def test_varlen_equals_dense(name, heads, window):
    def run(query, key, value, forest):
        return varlen(query, key, value, Shape(forest, query.device).paths, 0.125, window)

    assert_equals_dense(run, name, heads, window, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", SHAPES)
def test_flex_equals_dense(name, heads, window, dtype):
    def run(query, key, value, forest):
        return flex(query, key, value, Shape(forest, query.device).mask(window), 0.125)

    assert_equals_dense(run, name, heads, window, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SHAPES)
def test_chosen_kernel_equals_dense(name, dtype):
    assert_equals_dense(
        lambda query, key, value, forest: cuda_attention(query, key, value, forest, 0.125, None),
        name,
        (4, 2),
        None,
        dtype,
    )


BATCHES = {"flat": None, "pairs": PAIRS, "rankings": RANKINGS, "steps": STEPS, "copied often": (Tree(90, (3,) * 8),)}


def batch_named(kind: str) -> Batch:
    trees = BATCHES[kind]
    if trees is None:
        return assemble([all_scored(row) for row in sequences()])
    rng = np.random.default_rng(3)
    return batch_of([example_of(tree, rng) for tree in trees])


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen3", "gemma2"])
@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_and_gradients_equal_the_dense_reference(architecture, kind, dtype):
    batch = batch_named(kind)
    reference, model = build(architecture, attention.DENSE).to(dtype).float(), build(architecture).to("cuda", dtype)
    found = []
    for one, data in ((reference, batch), (model, batch.to("cuda"))):
        scores = score(one, data)
        scores.logprobs.mean().backward()
        flat = [p.grad.float().cpu().flatten() for p in one.parameters() if p.grad is not None]
        found.append((scores.logprobs.detach().cpu(), torch.cat(flat)))
    (wanted, wanted_gradient), (logprobs, gradient) = found
    tolerance = 1e-3 if dtype == torch.float32 else 0.15
    torch.testing.assert_close(logprobs, wanted, atol=tolerance, rtol=tolerance)
    assert (gradient - wanted_gradient).norm() <= (1e-3 if dtype == torch.float32 else 0.05) * wanted_gradient.norm()


class OnCpu(Mesh):
    """A world of one on the CPU, whatever the machine has."""

    def device(self) -> torch.device:
        return torch.device("cpu")


@pytest.mark.parametrize("kind", ["flat", "pairs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_steps_equal_the_cpu(kind, dtype):
    """Two LoRA steps; the second loss is equal only when gradients and updates are."""
    batch = replace(batch_named(kind), imitated=None)
    losses = []
    for mesh in (OnCpu(), Mesh()):
        model = with_lora("llama").to(mesh.device())
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        optimizer = Optimizer(trainable(model), AdamW(lr=1e-3))
        steps = []
        for _ in range(2):
            steps.append(compute_step(model, [batch], (SFT(),), optimizer, mesh))
            optimizer.set_rate(1.0)
            optimizer.step()
        losses.append([(step.loss, step.grad_norm) for step in steps])
    assert losses[0][0][0] != losses[0][1][0]
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    np.testing.assert_allclose(losses[1], losses[0], rtol=tolerance)
