"""Attention in tiles: as near to fp32 as bf16 allows, on every shape of forest, head and window."""

import itertools

import pytest
import torch
from torch import Tensor

from tunesmith.models import forest_attention
from tunesmith.models.forest import Forest
from tunesmith.models.forest_attention import Heads, Mixed, attend, attend_backward
from tunesmith.models.native.attention import serves

pytestmark = pytest.mark.skipif(
    not serves(torch.zeros(1, dtype=torch.bfloat16)), reason="the kernels multiply no blocks here: see tunesmith doctor"
)

LENGTHS = (1, 50, 17, 130, 3, 1, 64, 65, 32, 33, 200, 2)
FORESTS = {
    "one token": [(0, 1, -1)],
    "a sequence": [(0, 300, -1)],
    "sequences": [(end - length, end, -1) for length, end in zip(LENGTHS, itertools.accumulate(LENGTHS), strict=True)],
    "answers to a prompt": [(0, 70, -1), (70, 75, 0), (75, 140, 0), (140, 141, 0), (141, 180, -1), (180, 250, 4)],
    "a chain": [(0, 33, -1), (33, 40, 0), (40, 110, 1), (110, 112, 2)],
    "trees among each other": [(0, 20, -1), (20, 60, -1), (60, 75, 0), (75, 170, 1), (170, 180, 2), (180, 200, 0)],
}
SHAPES = {"smollm2": (3, 3, 64), "qwen3": (2, 2, 128), "odd": (1, 5, 40), "tiny": (2, 1, 8), "wide": (1, 1, 256)}
BF16 = 2**-7  # a number of 8 bits is half of this from the one it stands for


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def states(forest: Forest, shape: tuple[int, int, int]) -> tuple[Heads, Tensor]:
    keys, group, width = shape
    size = keys, forest.length
    heads = Heads(draw(*size, group * width, seed=0), draw(*size, width, seed=1), draw(*size, width, seed=2))
    return heads, draw(*size, group * width, seed=3)


def wide(heads: Heads) -> Heads:
    return Heads(heads.query.float(), heads.key.float(), heads.value.float())


def each(heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    return heads.query, heads.key, heads.value


def both_passes(heads: Heads, grad: Tensor, forest: Forest, scale: float, window: int | None) -> tuple[Tensor, ...]:
    mixed = attend(heads, forest, scale, window)
    return mixed.values, *each(attend_backward(grad, mixed, heads, forest, scale, window))


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("window", [None, 1, 40])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", FORESTS)
def test_it_is_nearer_to_fp32_than_torch_in_bf16(kind, shape, window, monkeypatch):
    forest = Forest.of(torch.tensor(FORESTS[kind]))
    heads, grad = states(forest, SHAPES[shape])
    scale = heads.key.shape[2] ** -0.5
    found = both_passes(heads, grad, forest, scale, window)
    assert all(part.dtype == torch.bfloat16 for part in found)
    wanted = both_passes(wide(heads), grad.float(), forest, scale, window)
    monkeypatch.setattr(forest_attention, "serves", lambda states: False)
    rounded = both_passes(heads, grad, forest, scale, window)
    for name, ours, right, theirs in zip(("mixed", "query", "key", "value"), found, wanted, rounded, strict=True):
        if right.norm() < 1e-4:  # one key alone has no slope
            assert ours.float().norm() < 1e-2, name
        else:
            assert distance(ours, right) <= max(1.05 * distance(theirs, right), BF16 / 4), name
            assert float((ours.float() - right).abs().max()) <= BF16 * max(1.0, float(right.abs().max())), name


def test_states_may_stand_where_they_like():
    forest = Forest.of(torch.tensor(FORESTS["sequences"]))
    heads, grad = states(forest, (3, 3, 64))
    wanted = both_passes(heads, grad, forest, 0.125, None)

    def apart(rows: Tensor) -> Tensor:
        return torch.cat([rows, rows], 2).transpose(0, 1).contiguous().transpose(0, 1)[..., : rows.shape[2]]

    def split(rows: Tensor) -> Tensor:
        return rows.transpose(1, 2).contiguous().transpose(1, 2)

    for moved in (apart, split):
        found = both_passes(Heads(*map(moved, each(heads))), moved(grad), forest, 0.125, None)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_numbers_do_not_depend_on_the_number_of_threads():
    forest = Forest.of(torch.tensor(FORESTS["trees among each other"]))
    heads, grad = states(forest, (3, 3, 64))
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(both_passes(heads, grad, forest, 0.125, None))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_a_sequence_knows_nothing_of_its_neighbours():
    """Not even through the zeros of a tile: what is no number in one stays in it."""
    forest = Forest.of(torch.tensor([(0, 20, -1), (20, 50, -1), (50, 60, 1)]))
    heads, grad = states(forest, (1, 1, 64))
    heads.value[:, 3], heads.key[:, 4], heads.query[:, 5], grad[:, 6] = (float("nan"),) * 4
    found = both_passes(heads, grad, forest, 0.125, None)
    for part in found:
        assert part[:, :20].isnan().any()
        assert part[:, 20:].isfinite().all()


def test_scores_of_any_size_stay_finite():
    forest = Forest.of(torch.tensor([(0, 80, -1)]))
    heads, grad = states(forest, (1, 2, 64))
    for times in (1e-6, 3e3):
        large = Heads(heads.query * times, heads.key * times, heads.value)
        assert all(part.isfinite().all() for part in both_passes(large, grad, forest, 0.125, None))


def test_rows_without_a_gradient_may_forget_what_they_were():
    """As the last layer does, of which only scored rows are kept."""
    forest = Forest.of(torch.tensor(FORESTS["sequences"]))
    heads, grad = states(forest, (3, 3, 64))
    grad[:, ::3] = 0
    mixed = attend(heads, forest, 0.125, None)
    wanted = each(attend_backward(grad, mixed, heads, forest, 0.125, None))
    forgotten = mixed.values.clone()
    forgotten[:, ::3] = 0
    found = each(attend_backward(grad, Mixed(forgotten, mixed.sums), heads, forest, 0.125, None))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
