"""What the GPU's kernels read of a forest, checked on the CPU against the dense mask."""

import numpy as np
import pytest
import torch
from tests.unit.models.test_forest import SEGMENTS
from torch import nn
from torch.nn.attention.flex_attention import flex_attention

from tunesmith.models import attention_cuda
from tunesmith.models.attention import dense_attention
from tunesmith.models.attention_cuda import BLOCK, Gather, Shape, block_tables, shape_of, visible
from tunesmith.models.forest import Forest, dense_mask

CPU = torch.device("cpu")
TREES = {
    **SEGMENTS,
    "chain": [(0, 130, -1), (130, 200, 0), (200, 430, 1), (430, 431, 2), (431, 440, 1)],
    "empty answer": [(0, 40, -1), (40, 40, 0), (40, 90, 0), (90, 90, 2), (90, 100, 3)],
    "one token": [(0, 1, -1)],
}
WINDOWS = [None, 1, 25, 200]


def forest_of(name: str) -> Forest:
    return Forest.of(torch.tensor(TREES[name]))


def all_pairs(forest: Forest, window: int | None) -> torch.Tensor:
    shape = Shape(forest, CPU)
    tokens = torch.arange(shape.total)
    return visible(shape.places, window)(tokens, tokens, tokens[:, None], tokens[None])


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", TREES)
def test_mask_shows_every_row_exactly_its_own_path(name, window):
    forest = forest_of(name)
    assert torch.equal(all_pairs(forest, window), dense_mask(forest, window))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", TREES)
def test_blocks_with_and_without_hidden_keys(name, window):
    """A block is listed when some row sees some key; only one in which all is visible may skip the mask."""
    forest = forest_of(name)
    wanted = dense_mask(forest, window)
    count = -(-len(wanted) // BLOCK)
    padded = nn.functional.pad(wanted, [0, count * BLOCK - len(wanted)] * 2)
    tiles = padded.view(count, BLOCK, count, BLOCK)
    some, full = map(torch.from_numpy, block_tables(Shape(forest, CPU).segments, window))
    assert torch.equal(some, tiles.any(3).any(1))
    assert not (full & ~tiles.all(3).all(1)).any()
    mask = Shape(forest, CPU).mask(window)
    listed = torch.zeros(2, count, count, dtype=torch.bool)
    for kind, (counts, order) in enumerate(
        [(mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)]
    ):
        for row in range(count):
            listed[kind, row, order[0, 0, row, : counts[0, 0, row]].long()] = True
    assert torch.equal(listed[0], some & ~full)
    assert torch.equal(listed[1], full)


def test_long_segments_have_blocks_that_need_no_mask():
    full = block_tables(Shape(forest_of("long prompt"), CPU).segments, None)[1]
    assert full.sum() == 21  # seven whole blocks of the prompt, each below the diagonal


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", TREES)
def test_paths_are_causal_when_aligned_at_their_last_key(name, window):
    """The rows that a varlen kernel shows each key to, which counts from the end of each sequence's keys."""
    forest = forest_of(name)
    wanted = dense_mask(forest, window)
    paths = Shape(forest, CPU).paths
    order = torch.arange(len(wanted)) if paths.keys is None else paths.keys
    found = torch.zeros_like(wanted)
    rows, keys = paths.row_bounds.tolist(), paths.key_bounds.tolist()
    for number in range(len(rows) - 1):
        count, length = rows[number + 1] - rows[number], keys[number + 1] - keys[number]
        assert 0 < count <= paths.most_rows
        assert count <= length <= paths.most_keys
        place = torch.arange(count)[:, None] + length - count
        near = torch.arange(length)[None] <= place
        if window is not None:
            near &= torch.arange(length)[None] >= place - (window - 1)
        found[rows[number] : rows[number + 1], order[keys[number] : keys[number + 1]]] = near
    assert rows[-1] == len(wanted)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("window", [None, 25])
@pytest.mark.parametrize("name", ["short trees", "answers after all prompts", "chain", "flat"])
def test_flex_attention_equals_the_dense_reference(name, window):
    forest = forest_of(name)
    shape = Shape(forest, CPU)
    made = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(1, heads, shape.total, 16, generator=made) for heads in (4, 2, 2))
    wanted, _ = dense_attention(nn.Identity(), query, key, value, None, forest=forest, sliding_window=window)
    found = flex_attention(query, key, value, block_mask=shape.mask(window), enable_gqa=True)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found.transpose(1, 2), wanted, atol=2e-6, rtol=1e-5)


def test_gathered_rows_sum_the_gradients_of_all_their_readers():
    states = torch.randn(3, 2, 4, dtype=torch.bfloat16, requires_grad=True)
    index = torch.tensor([2, 0, 2, 2])
    weights = torch.randn(4, 2, 4)
    (Gather.apply(states, index).float() * weights).sum().backward()
    assert states.grad is not None
    rounded = weights.bfloat16().float()
    wanted = torch.stack([rounded[1], torch.zeros(2, 4), rounded[0] + rounded[2] + rounded[3]])
    torch.testing.assert_close(states.grad.float(), wanted, atol=0, rtol=2**-8)


def test_all_layers_of_a_step_share_one_mask():
    first, second = forest_of("chain"), forest_of("chain")
    assert shape_of(first, CPU) is shape_of(first, CPU)
    assert shape_of(first, CPU) is not shape_of(second, CPU)
    assert shape_of(first, CPU).mask(7) is shape_of(first, CPU).mask(7)
    assert shape_of(first, CPU).mask(7) is not shape_of(first, CPU).mask(None)
    for _ in range(2 * attention_cuda.KEPT):
        shape_of(Forest.of(torch.tensor([(0, 5, -1)])), CPU)
    assert len(attention_cuda.RECENT) == attention_cuda.KEPT


def test_packed_sequences_copy_no_key():
    paths = Shape(forest_of("flat"), CPU).paths
    assert paths.keys is None
    assert paths.copies == 1.0
    shared = Shape(forest_of("short trees"), CPU).paths
    assert shared.copies == pytest.approx((180 + 2 * 40 + 2 * 19) / 180)


def test_places_nest_like_the_trees():
    enter, leave, depth = Shape(forest_of("answers after all prompts"), CPU).places.numpy()
    starts = [start for start, _, _ in TREES["answers after all prompts"]]
    assert [(int(enter[at]), int(leave[at])) for at in starts] == [(0, 3), (3, 5), (1, 2), (4, 5), (2, 3)]
    assert np.array_equal(depth[50:60], np.arange(20, 30))
