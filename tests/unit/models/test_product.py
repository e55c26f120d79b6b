"""Products of many rows by the kernel: as exact as one rounding allows, a row at a time, whatever the shape."""

import pytest
import torch
from torch import Tensor

from tunesmith.models.native.kernels import has_products
from tunesmith.models.native.product import (
    FEWEST,
    WIDE_ROWS,
    has_onednn,
    is_wide,
    rows_by_inputs,
    rows_by_outputs,
    serves,
    through_kernel,
)

kernel = pytest.mark.skipif(
    not has_products(), reason="the kernels multiply no rows here: AMX, no AVX-512 or no compiler (tunesmith doctor)"
)


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def is_rounded(found: Tensor, wanted: Tensor, inner: int) -> bool:
    """Whether every figure is the exact one rounded to bf16 once, after sums in fp32."""
    slack = 2.0**-8 * wanted.abs() + 2.0**-20 * inner**0.5 * wanted.norm() / wanted.numel() ** 0.5
    return bool(((found.double() - wanted).abs() <= slack).all())


def both_ways(
    x: Tensor, low: Tensor | None, weight: Tensor, factor: Tensor | None, down: bool
) -> tuple[Tensor, Tensor]:
    """What the function gives, and the same in fp64."""
    out = x.new_full((len(x), weight.shape[1] if down else len(weight)), float("nan"))
    (rows_by_inputs if down else rows_by_outputs)(x, weight, out, low, factor)
    wanted = x.double() @ (weight.double() if down else weight.double().T)
    if low is not None and factor is not None:
        wanted += low.double() @ (factor.double() if down else factor.double().T)
    return out, wanted


@kernel
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("ranks", [0, 2, 8, 48])
@pytest.mark.parametrize("columns", [16, 48, 64, 80, 176])
@pytest.mark.parametrize(("rows", "inner"), [(FEWEST, 32), (37, 66), (64, 576), (100, 2048), (31, 2050), (50, 4128)])
def test_the_product_is_that_of_fp64(rows, inner, columns, ranks, down):
    x, low = draw(rows, inner, seed=0), draw(rows, ranks, seed=1) if ranks else None
    weight = draw(inner, columns, seed=2) if down else draw(columns, inner, seed=2)
    factor = None if low is None else draw(ranks, columns, seed=3) if down else draw(columns, ranks, seed=3)
    assert serves(x, weight, columns, low)
    found, wanted = both_ways(x, low, weight, factor, down)
    assert is_rounded(found, wanted, inner)


@kernel
def test_layers_side_by_side_have_ranks_of_their_own():
    x, low, weight = draw(70, 64, seed=0), draw(70, 24, seed=1), draw(192, 64, seed=2)
    factor = torch.zeros(192, 24, dtype=torch.bfloat16)
    for part in range(3):
        factor[part * 64 : part * 64 + 64, part * 8 : part * 8 + 8] = draw(64, 8, seed=3 + part)
    factor[:, 20] = 0  # in the middle of the last part
    found, wanted = both_ways(x, low, weight, factor, down=False)
    assert is_rounded(found, wanted, 64)
    nothing, wanted = both_ways(x, low, weight, torch.zeros_like(factor), down=False)
    assert is_rounded(nothing, wanted, 64)


@kernel
@pytest.mark.parametrize("down", [False, True])
def test_a_row_does_not_depend_on_its_neighbours_nor_on_the_threads(down):
    x, low = draw(211, 2304, seed=0), draw(211, 16, seed=1)
    weight = draw(2304, 208, seed=2) if down else draw(208, 2304, seed=2)
    factor = draw(16, 208, seed=3) if down else draw(208, 16, seed=3)
    whole, _ = both_ways(x, low, weight, factor, down)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            assert torch.equal(both_ways(x, low, weight, factor, down)[0], whole)
    finally:
        torch.set_num_threads(threads)
    some, _ = both_ways(x[17:60], low[17:60], weight, factor, down)
    assert torch.equal(some, whole[17:60])


@kernel
def test_rows_may_lie_apart_and_what_is_no_number_stays_in_its_row():
    wide = draw(40, 200, seed=0)
    wide[7, 3] = float("nan")
    x, weight = wide[:, :64], draw(32, 64, seed=1)
    assert serves(x, weight, 32, None)
    found, wanted = both_ways(x, None, weight, None, down=False)
    others = torch.arange(40) != 7
    assert found[7].isnan().all()
    assert is_rounded(found[others], wanted[others], 64)


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize(
    ("rows", "inner", "columns", "ranks", "dtype"),
    [
        (FEWEST - 1, 32, 32, 8, torch.bfloat16),
        (40, 33, 32, 8, torch.bfloat16),
        (40, 32, 24, 8, torch.bfloat16),
        (40, 32, 32, 7, torch.bfloat16),
        (40, 32, 32, 8, torch.float32),
    ],
)
def test_torch_does_what_the_kernel_does_not(rows, inner, columns, ranks, dtype, down):
    x, low = draw(rows, inner, seed=0, dtype=dtype), draw(rows, ranks, seed=1, dtype=dtype)
    weight = draw(*((inner, columns) if down else (columns, inner)), seed=2, dtype=dtype)
    factor = draw(*((ranks, columns) if down else (columns, ranks)), seed=3, dtype=dtype)
    assert not serves(x, weight, columns, low)
    found, wanted = both_ways(x, low, weight, factor, down)
    assert (found.double() - wanted).norm() <= (1e-2 if dtype == torch.bfloat16 else 1e-6) * wanted.norm()


@kernel
def test_sizes_that_do_not_fit_are_an_error_and_not_a_read_of_other_memory():
    x, weight, out = draw(32, 64, seed=0), draw(32, 64, seed=1), torch.empty(32, 32, dtype=torch.bfloat16)
    with pytest.raises(AssertionError):
        through_kernel(x, weight[:, :32].contiguous(), out, None, None, down=False)
    with pytest.raises(AssertionError):
        through_kernel(x, weight, out[:16], None, None, down=False)
    with pytest.raises(AssertionError, match="rows must follow"):
        through_kernel(x, weight, out.T[:, ::2].expand(32, 16).repeat(1, 2).T, None, None, down=False)
    with pytest.raises(AssertionError):
        through_kernel(x, weight, out, draw(31, 8, seed=2), draw(32, 8, seed=3), down=False)


@pytest.mark.skipif(not has_onednn(), reason="torch has no oneDNN here, or the processor no AVX-512")
@pytest.mark.parametrize("ranks", [0, 8])
@pytest.mark.parametrize("down", [False, True])
def test_onednn_forms_wide_products_in_fp32_as_exactly_as_torch(down, ranks):
    shape = (576, 1024) if down else (1024, 576)
    x, weight = draw(200, 576, seed=0, dtype=torch.float32), draw(*shape, seed=1, dtype=torch.float32)
    low = draw(200, ranks, seed=2, dtype=torch.float32) if ranks else None
    factor = draw(*((ranks, 1024) if down else (1024, ranks)), seed=3, dtype=torch.float32) if ranks else None
    assert is_wide(x, weight)
    assert not is_wide(x[: WIDE_ROWS - 1], weight)
    assert not is_wide(x, weight[:100])
    found, wanted = both_ways(x, low, weight, factor, down)
    assert (found.double() - wanted).norm() <= 1e-6 * wanted.norm()
    assert torch.equal(both_ways(x, low, weight, factor, down)[0], found)
    some, _ = both_ways(x[50:150], None if low is None else low[50:150], weight, factor, down)
    assert (some - found[50:150]).norm() <= 1e-6 * found[50:150].norm()
