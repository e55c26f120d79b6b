"""Answers that share a prompt score and train as if each were computed alone, on every architecture."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tests.unit.models.architectures import ARCHITECTURES, VOCABULARY, build
from torch import Tensor, nn

from tunesmith.data.packing import batch_of
from tunesmith.models import attention, forest
from tunesmith.models.adapters import attach
from tunesmith.models.config import LoraConfig
from tunesmith.models.forest import Forest
from tunesmith.models.forward import hidden_states, score
from tunesmith.models.fused import fuse
from tunesmith.types import Batch, Example


@dataclass(frozen=True)
class Tree:
    """Tokens of a prompt and of its answers; with `chained` each answer continues the one before."""

    prompt: int
    answers: tuple[int, ...]
    chained: bool = False


PAIRS = (Tree(9, (6, 13)), Tree(17, (4, 4)), Tree(11, (12, 3)))
RANKINGS = (Tree(12, (5, 9, 1, 7)), Tree(8, (3, 3, 10, 2)))
STEPS = (Tree(10, (4, 1, 6), chained=True), Tree(14, (9, 5), chained=True))
EDGES = (Tree(1, (5, 1)), Tree(3, (1, 1)), Tree(21, (1, 30)), Tree(1, (1,)), Tree(2, (1, 2, 1), chained=True))
KINDS = {"pairs": PAIRS, "rankings": RANKINGS, "steps": STEPS, "edges": EDGES}


def example_of(tree: Tree, rng: np.random.Generator) -> Example:
    total = tree.prompt + sum(tree.answers)
    weights = np.ones(total, dtype=np.float32)
    weights[: tree.prompt] = 0
    cuts = tuple(tree.prompt + sum(tree.answers[:number]) for number in range(len(tree.answers)))
    tokens = rng.integers(3, VOCABULARY, total).astype(np.int32)
    return Example(tokens, weights, "file.jsonl", 1, cuts, (0.0,) * len(cuts), tree.chained)


def alone(example: Example) -> list[Example]:
    """The same sequences, each with a prompt of its own; a chain is one sequence."""
    if example.chained:
        return [Example(example.tokens, example.weights, "file.jsonl", 1)]
    ends = (*example.cuts[1:], len(example))
    head = slice(0, example.cuts[0])
    return [
        Example(
            np.concatenate([example.tokens[head], example.tokens[start:end]]),
            np.concatenate([example.weights[head], example.weights[start:end]]),
            "file.jsonl",
            1,
        )
        for start, end in zip(example.cuts, ends, strict=True)
    ]


def batches(trees: tuple[Tree, ...], seed: int = 3) -> tuple[Batch, Batch]:
    """The trees as one forest, and their sequences apart; the scored tokens stand in the same order."""
    rng = np.random.default_rng(seed)
    examples = [example_of(tree, rng) for tree in trees]
    shared, separate = batch_of(examples), batch_of([part for example in examples for part in alone(example)])
    assert shared.target.tolist() == separate.target.tolist()
    return shared, separate


def loss_and_gradients(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Log-probabilities, a loss that weighs every one of them differently, and its gradients."""
    model.zero_grad()
    logprobs = score(model, batch).logprobs
    weights = torch.linspace(-1, 1.5, len(logprobs))
    loss = (logprobs * weights).sum() / len(logprobs)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logprobs.detach(), loss.detach(), found


def assert_equal_work(model: nn.Module, trees: tuple[Tree, ...]) -> None:
    """Loss within 1e-6 and each gradient within 1e-5 of its tensor's largest entry, in fp32."""
    shared, separate = batches(trees)
    assert all(tree.chained for tree in trees) or len(shared.tokens) < len(separate.tokens)
    ours, theirs = loss_and_gradients(model, shared), loss_and_gradients(model, separate)
    torch.testing.assert_close(ours[0], theirs[0], atol=5e-6, rtol=1e-6)
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-6, rtol=0)
    assert ours[2].keys() == theirs[2].keys()
    largest = max(gradient.abs().max() for gradient in theirs[2].values())
    for name, gradient in theirs[2].items():
        scale = max(float(gradient.abs().max()), 1e-2 * float(largest))
        assert (ours[2][name] - gradient).abs().max() <= 1e-5 * scale, name


def with_lora(architecture: str) -> nn.Module:
    """The model with adapters whose second factor is not zero, so that both factors get gradients."""
    model = attach(build(architecture), LoraConfig(rank=4, alpha=8))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forest_equals_separate_forwards(architecture, kind):
    assert_equal_work(build(architecture), KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forest_equals_separate_forwards_with_adapters(architecture, kind):
    model = with_lora(architecture)
    assert_equal_work(model, KINDS[kind])
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_many_trees_in_one_batch(architecture):
    assert_equal_work(fuse(build(architecture)), (*PAIRS, *RANKINGS, *STEPS, *EDGES))


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3_text"])
def test_trees_longer_than_a_block(architecture, monkeypatch):
    monkeypatch.setattr(forest, "BLOCK", 16)
    assert_equal_work(build(architecture), (Tree(45, (20, 33)), Tree(33, (5, 6, 3)), Tree(20, (40, 7), chained=True)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dense_reference_equals_ragged(architecture, kind):
    shared, _ = batches(KINDS[kind])
    ours = loss_and_gradients(build(architecture), shared)
    reference = loss_and_gradients(build(architecture, attention.DENSE), shared)
    torch.testing.assert_close(ours[0], reference[0], atol=5e-6, rtol=1e-6)
    torch.testing.assert_close(ours[1], reference[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("change", ["sibling", "other tree"])
def test_answers_do_not_see_each_other(change):
    rng = np.random.default_rng(5)
    examples = [example_of(tree, rng) for tree in PAIRS]
    before = hidden_states(build("mistral"), batch_of(examples))
    place = examples[0].cuts[0] if change == "sibling" else len(examples[0]) + 2
    batch = batch_of(examples)
    batch.tokens[place] = (batch.tokens[place] + 1) % VOCABULARY
    after = hidden_states(build("mistral"), batch)
    start, end, _ = batch.segments[2].tolist()  # the second answer of the first pair
    assert torch.equal(before[start:end], after[start:end])
    assert not torch.equal(before, after)


SEGMENTS: dict[str, list[tuple[int, int, int]]] = {
    "short trees": [(0, 40, -1), (40, 70, 0), (70, 101, 0), (101, 120, -1), (120, 150, 3), (150, 180, 3)],
    "long prompt": [(0, 1000, -1), (1000, 1060, 0), (1060, 1117, 0)],
    "block and children": [(0, 150, -1), (150, 170, 0), (170, 230, 0), (230, 240, 2)],
    "answers after all prompts": [(0, 20, -1), (20, 50, -1), (50, 60, 0), (60, 75, 1), (75, 80, 0)],
    "flat": [(0, 7, -1), (7, 300, -1), (300, 301, -1)],
}


@pytest.mark.parametrize("window", [None, 1, 25, 200])
@pytest.mark.parametrize("name", SEGMENTS)
def test_stacks_show_every_row_exactly_its_own_path(name, window):
    """The masks of all stacks, put together, are the dense mask, and every row stands in one unit."""
    shape = Forest.of(torch.tensor(SEGMENTS[name]))
    wanted = forest.dense_mask(shape, window)
    found, rows = torch.zeros_like(wanted), torch.zeros(len(wanted), dtype=torch.int64)
    for stack in shape.stacks(window, torch.float32):
        count, height = len(stack.units), stack.bias.shape[1]
        shown = torch.ones(count, height, len(stack.keys) // count, dtype=torch.bool)
        shown[..., shown.shape[-1] - stack.bias.shape[-1] :] = stack.bias == 0
        assert shown.any(-1).all(), "a row without keys has no softmax"
        for unit, mask, keys in zip(stack.units, shown, stack.keys.view(count, -1), strict=True):
            rows[unit.start : unit.stop] += 1
            for row in range(unit.start, unit.stop):
                seen = keys[mask[row - unit.start]]
                assert len(seen.unique()) == len(seen)
                found[row, seen] = True
    assert torch.equal(found, wanted)
    assert torch.equal(rows, torch.ones_like(rows))


def test_many_lengths_make_few_sizes_of_matmul():
    """A kernel is made per size and only so many are kept: 600 trees of random lengths need no more than these."""
    rng = np.random.default_rng(1)
    trees = [Tree(lengths[0], (lengths[1], lengths[2])) for lengths in rng.integers(20, 60, (600, 3)).tolist()]
    batch = batch_of([example_of(tree, rng) for tree in trees])
    stacks = Forest.of(batch.segments).stacks(None, torch.float32)
    sizes = {(len(stack.units), stack.bias.shape[1], len(stack.keys) // len(stack.units)) for stack in stacks}
    assert len(sizes) <= 24


def test_probabilities_of_a_stack_are_bounded():
    shape = Forest.of(torch.tensor([(0, 3000, -1), *((3000 + 50 * n, 3050 + 50 * n, 0) for n in range(40))]))
    longest = 3050 + forest.BLOCK
    for stack in shape.stacks(None, torch.float32):
        held = len(stack.units) * stack.bias.shape[1] * len(stack.keys) // len(stack.units)
        assert held <= max(forest.STACKED, forest.BLOCK * longest)
