"""Products of few rows and attention over pages: the compiled kernels against torch."""

import pytest
import torch

from tunesmith.models.native import build, decode
from tunesmith.models.native.decode import PLACES, PackedMatrix, PackedMatrix8, attend_pages, keep

compiled = pytest.mark.skipif(not decode.serves(torch.bfloat16), reason=f"no products in blocks here: {build.state()}")


def bf16(*shape: int) -> torch.Tensor:
    return torch.randn(shape).bfloat16()


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found.float() - wanted).abs().max() / wanted.abs().max()).item()


@compiled
@pytest.mark.parametrize(("outputs", "inputs"), [(960, 576), (100, 72), (33, 31), (576, 1536)])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 13, 33, 64])
def test_products_of_few_rows_equal_exact_ones_up_to_rounding(rows: int, outputs: int, inputs: int) -> None:
    torch.manual_seed(rows)
    x, weight = bf16(rows, inputs), bf16(outputs, inputs)
    wanted, out = x.float() @ weight.float().T, torch.full((rows, outputs), float("nan"), dtype=torch.bfloat16)
    PackedMatrix(weight).product(x, out)
    assert apart(out, wanted) < 2**-8
    out.fill_(float("nan"))
    PackedMatrix8(weight).product(x, out)
    assert apart(out, wanted) < 0.03


@compiled
@pytest.mark.parametrize("kind", [PackedMatrix, PackedMatrix8])
def test_a_row_does_not_depend_on_the_rows_beside_it(kind: type[PackedMatrix] | type[PackedMatrix8]) -> None:
    torch.manual_seed(0)
    matrix, x = kind(bf16(96, 200)), bf16(19, 200)
    together = torch.empty(19, 96, dtype=torch.bfloat16)
    matrix.product(x, together)
    for row in range(19):
        alone = torch.empty(1, 96, dtype=torch.bfloat16)
        matrix.product(x[row : row + 1], alone)
        assert torch.equal(alone[0], together[row])


@compiled
def test_numbers_that_are_not_finite_show_in_their_row_alone() -> None:
    x = bf16(3, 64)
    x[1, 5] = float("nan")
    for kind in (PackedMatrix, PackedMatrix8):
        out = torch.empty(3, 40, dtype=torch.bfloat16)
        kind(bf16(40, 64)).product(x, out)
        assert out.isfinite().all(1).tolist() == [True, False, True]


@compiled
@pytest.mark.parametrize("window", [None, 3, 50, 64])
@pytest.mark.parametrize(("width", "group"), [(64, 3), (128, 2), (80, 7), (16, 1), (64, 5)])
def test_attention_over_pages_equals_attention_over_the_tokens_in_order(
    width: int, group: int, window: int | None
) -> None:
    torch.manual_seed(0)
    heads, lengths = 2, [1, 16, 63, 64, 65, 130, 200]
    spare = torch.randperm(24).tolist()
    cache = torch.zeros(2, 24, heads, PLACES, width, dtype=torch.bfloat16)
    pages = torch.zeros(len(lengths), 4, dtype=torch.int32)
    held = []
    for row, length in enumerate(lengths):
        own = [spare.pop() for _ in range(-(-length // PLACES))]
        pages[row, : len(own)] = torch.tensor(own)
        key, value = bf16(heads, length, width), bf16(heads, length, width)
        keep(cache, key, value, torch.tensor([own[at // PLACES] * PLACES + at % PLACES for at in range(length)]))
        held.append((key.float(), value.float()))
    query = bf16(heads, len(lengths), group * width)
    out = torch.empty(len(lengths), heads * group * width, dtype=torch.bfloat16)
    attend_pages(query, cache, pages, torch.tensor(lengths), window, width**-0.5, out)
    for row, (key, value) in enumerate(held):
        own = query[:, row].view(heads, group, width).float()
        seen = slice(-window if window else None, None)
        chances = (own @ key[:, seen].mT * width**-0.5).softmax(-1)
        assert apart(out[row], (chances @ value[:, seen]).flatten()) < 0.01


def test_other_types_and_odd_widths_are_left_to_torch() -> None:
    assert not decode.serves(torch.float32)
    assert not decode.serves(torch.float16)
    assert not decode.serves(torch.bfloat16, width=72)
