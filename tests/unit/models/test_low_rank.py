"""The gradient of low-rank factors from one pass: as exact as sums in fp32 are, whatever the shape."""

import pytest
import torch
from torch import Tensor

from tunesmith.models.native import low_rank
from tunesmith.models.native.low_rank import CHUNK, fold, fold_and_lower, serves

pytestmark = pytest.mark.skipif(
    not serves(torch.zeros(1, 32, dtype=torch.bfloat16), torch.zeros(1, 1)),
    reason="the kernels multiply no blocks here: see tunesmith doctor",
)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def close(found: Tensor, wanted: Tensor, share: float) -> bool:
    return bool((found.double() - wanted).norm() <= share * wanted.norm())


@pytest.mark.parametrize("ranks", [1, 8, 16, 24, 32])
@pytest.mark.parametrize("width", [32, 96, 576])
@pytest.mark.parametrize("rows", [1, 63, 64, 65, CHUNK, CHUNK + 1, 1300])
def test_both_products_are_those_of_fp64(rows, width, ranks):
    x, low, b = draw(rows, width, seed=0), draw(rows, ranks, seed=1), draw(width, ranks, seed=2)
    folded, lowered = fold_and_lower(x, low, b)
    assert folded.dtype == torch.float32
    assert lowered.dtype == torch.bfloat16
    assert close(folded, low.double().T @ x.double(), 1e-6)
    assert close(lowered, x.double() @ b.double(), 2**-8)
    assert torch.equal(fold(x, low), folded)


def test_numbers_do_not_depend_on_the_number_of_threads():
    x, low, b = draw(2000, 96, seed=0), draw(2000, 16, seed=1), draw(96, 16, seed=2)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(fold_and_lower(x, low, b))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert torch.equal(found[0][0], other[0])
        assert torch.equal(found[0][1], other[1])


def test_what_is_no_number_stays_in_its_row_and_column():
    x, low, b = draw(100, 64, seed=0), draw(100, 8, seed=1), draw(64, 8, seed=2)
    x[70, 40] = float("nan")
    folded, lowered = fold_and_lower(x, low, b)
    assert folded[:, 40].isnan().all()
    assert folded[:, torch.arange(64) != 40].isfinite().all()
    assert lowered[70].isnan().all()
    assert lowered[torch.arange(100) != 70].isfinite().all()


@pytest.mark.parametrize(
    ("x", "low"),
    [
        (torch.zeros(4, 32), torch.zeros(4, 8)),
        (torch.zeros(4, 40, dtype=torch.bfloat16), torch.zeros(4, 8, dtype=torch.bfloat16)),
        (torch.zeros(4, 32, dtype=torch.bfloat16), torch.zeros(4, low_rank.RANKS + 1, dtype=torch.bfloat16)),
    ],
    ids=["fp32", "odd width", "many ranks"],
)
def test_torch_does_what_the_kernel_does_not(x, low):
    assert not serves(x, low)
    folded, lowered = fold_and_lower(x, low, torch.zeros(x.shape[1], low.shape[1], dtype=x.dtype))
    assert folded.shape == (low.shape[1], x.shape[1])
    assert lowered.shape == low.shape


def test_rows_with_gaps_are_refused():
    with pytest.raises(AssertionError, match="rows must follow each other"):
        fold(draw(4, 64, seed=0)[:, :32], draw(4, 8, seed=1))
