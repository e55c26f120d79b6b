"""Compiled kernels against the torch code that runs without them, number by number."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from tunesmith.models import forest_attention, head
from tunesmith.models.forest import Forest
from tunesmith.models.forest_attention import Heads, attend, attend_backward
from tunesmith.models.layer import parts
from tunesmith.models.native import build
from tunesmith.models.native.kernels import kernels_for

pytestmark = pytest.mark.skipif(build.library() is None, reason=f"no kernels here: {build.state()}")

TYPES = (torch.float32, torch.bfloat16)
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 2**-7}  # relative to the largest entry; bf16: torch rounds halfway too
SEGMENTS = torch.tensor([(0, 40, -1), (40, 70, 0), (70, 101, 0), (101, 230, -1), (230, 231, -1)])


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_alike(one: Tensor, other: Tensor, dtype: torch.dtype) -> None:
    one, other = one.double(), other.double()
    assert (one - other).abs().max() <= CLOSE[dtype] * max(1.0, float(other.abs().max()))


@pytest.fixture
def without(monkeypatch):
    """Runs a function as if nothing had been compiled."""

    def run(function, *given, **named):
        with monkeypatch.context() as context:
            for module in (parts, forest_attention, head):
                context.setattr(module, "kernels_for", lambda states: None)
            context.setattr(forest_attention, "serves", lambda states: False)
            return function(*given, **named)

    return run


@pytest.mark.parametrize("inner", [1, 3])
@pytest.mark.parametrize("dtype", TYPES)
def test_norm_and_its_gradient(dtype, inner, without):
    whole = draw(37, inner * 48 + 8, dtype=dtype)
    x = whole[:, : inner * 48] if inner == 1 else whole[:, : inner * 48].unflatten(1, (inner, 48))
    weight, grad, beside = (
        draw(48, dtype=dtype),
        draw(*x.shape, dtype=dtype, seed=1),
        draw(*x.shape, dtype=dtype, seed=2),
    )
    ours, theirs = torch.empty(x.shape, dtype=dtype), torch.empty(x.shape, dtype=dtype)
    factor, wanted = parts.norm(x, weight, 1e-5, ours), without(parts.norm, x, weight, 1e-5, theirs)
    assert_alike(factor, wanted, torch.float32)
    assert_alike(ours, theirs, dtype)
    for other in (None, beside):
        found = parts.norm_backward(grad, x, weight, factor, other)
        assert_alike(found, without(parts.norm_backward, grad, x, weight, factor, other), dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_rotation_and_back(dtype, without):
    rows = draw(29, 2 * 3 * 16 + 5, dtype=dtype)[:, :96]
    x = rows.unflatten(1, (2, 3, 16)).transpose(0, 1)
    angles = draw(29, 16, dtype=torch.float32, seed=1)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    for function in (parts.rotate, parts.rotate_backward):
        ours, theirs = (torch.empty(2, 29, 3, 16, dtype=dtype) for _ in range(2))
        function(x, cos, sin, ours)
        without(function, x, cos, sin, theirs)
        assert_alike(ours, theirs, dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_gate_and_its_gradient(dtype, without):
    both, grad = 4 * draw(31, 2 * 40, dtype=dtype), draw(31, 40, dtype=dtype, seed=1)
    ours, theirs = torch.empty(31, 40, dtype=dtype), torch.empty(31, 40, dtype=dtype)
    assert_alike(parts.gate(both, ours), without(parts.gate, both, theirs), dtype)
    grads, wanted = torch.empty_like(both), torch.empty_like(both)
    product = parts.gate_backward(grad, both, grads).clone()
    assert_alike(product, without(parts.gate_backward, grad, both, wanted), dtype)
    assert_alike(grads, wanted, dtype)


@pytest.mark.parametrize("window", [None, 25])
def test_attention_and_its_gradient(window, without):
    """In bf16 other kernels serve where they can: see test_tiled_attention.py."""
    shape = Forest.of(SEGMENTS)
    query, grad = (draw(2, 231, 48, dtype=torch.float32, seed=seed) for seed in (0, 1))
    heads = Heads(query, *(draw(2, 231, 16, dtype=torch.float32, seed=seed) for seed in (2, 3)))
    mixed = attend(heads, shape, 0.25, window)
    assert_alike(mixed.values, without(attend, heads, shape, 0.25, window).values, torch.float32)
    given = grad, mixed, heads, shape, 0.25, window
    found, wanted = attend_backward(*given), without(attend_backward, *given)
    for name in ("query", "key", "value"):
        assert_alike(getattr(found, name), getattr(wanted, name), torch.float32)


@pytest.mark.parametrize("dtype", TYPES)
def test_powers_of_the_head(dtype, without):
    rows, weight = draw(19, 24, dtype=dtype), draw(1003, 24, dtype=dtype, seed=1)
    ours, theirs = (head.Softmax(rows, weight, torch.arange(19) * 7) for _ in range(2))
    for words in (slice(0, 100), slice(100, 1003)):
        powers, worth = (part.clone() for part in ours.add(words))
        wanted, wanted_worth = without(theirs.add, words)
        assert_alike(powers, wanted, dtype)
        assert_alike(worth, wanted_worth, torch.float32)
    assert_alike(ours.sums / theirs.sums, torch.ones(19, 1), dtype)
    torch.testing.assert_close(
        ours.logprobs(), theirs.logprobs(), atol=2e-6 if dtype == torch.float32 else 2e-2, rtol=0
    )
    assert torch.equal(ours.correct(), theirs.correct())
    assert torch.equal(ours.largest, theirs.largest)


def test_powers_are_right_from_one_end_of_fp32_to_the_other():
    """Two units in the last place of an fp32 number are 2.4e-7 of it."""
    exponents = torch.linspace(-87, 0, 20001)
    found = exponents[None].clone()
    largest, sums, worth = torch.full((1, 1), -math.inf), torch.zeros(1, 1), torch.empty(1, 1)
    kernels = kernels_for(found)
    assert kernels is not None
    kernels.powers(found, largest, sums, worth)
    assert (largest.item(), worth.item()) == (0, 0)
    torch.testing.assert_close(found[0].double(), exponents.double().exp(), rtol=3e-7, atol=0)


def test_hidden_keys_get_exactly_nothing_and_what_is_not_a_number_stays_so():
    scores = torch.tensor([[[0.0, 2.0, 1.0], [0.0, math.nan, 1.0]]])
    kernels = kernels_for(scores)
    assert kernels is not None
    kernels.softmax(scores, torch.tensor([[[0.0, -math.inf], [0.0, 0.0]]]))
    assert scores[0, 0, 2] == 0
    assert scores[0, 0].sum().item() == pytest.approx(1)
    assert scores[0, 1].isnan().all()
    broken = torch.full((1, 8), math.nan, dtype=torch.bfloat16)
    out, factor = torch.empty_like(broken), torch.empty(1, 1)
    kernels = kernels_for(broken)
    assert kernels is not None
    kernels.norm(broken, torch.ones(8), 1e-5, out, factor)
    assert out.isnan().all()


@pytest.mark.parametrize("other", [draw(4, 16, dtype=torch.float32), draw(16, 4, dtype=torch.bfloat16).T])
def test_tensors_that_would_be_read_as_nonsense_are_refused(other):
    x, factor = draw(4, 16, dtype=torch.bfloat16), torch.ones(4, 1)
    with pytest.raises(AssertionError, match="mixed types or split rows"):
        parts.norm_backward(other, x, torch.ones(16), factor)


def test_numbers_do_not_depend_on_the_number_of_threads():
    both = draw(513, 2 * 96, dtype=torch.bfloat16)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(parts.gate(both, torch.empty(513, 96, dtype=torch.bfloat16)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_without_a_compiler_torch_does_the_work(tmp_path):
    """In a process of its own: what was compiled is remembered for the life of one."""
    code = (
        "import torch; from tunesmith.models.native import build, kernels; "
        "print(build.state(), kernels.kernels_for(torch.zeros(1)))"
    )
    bare = {**os.environ, "TUNESMITH_HOME": str(tmp_path), "PATH": str(tmp_path), "CXX": ""}
    none = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=bare)
    assert none.stdout == "torch alone: there is no C++ compiler None\n"
    off = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TUNESMITH_KERNELS": "off"},
    )
    assert off.stdout == "off: TUNESMITH_KERNELS=off is set None\n"


def test_a_library_is_built_once(tmp_path, monkeypatch):
    monkeypatch.setenv(build.FOLDER_VARIABLE, str(tmp_path))
    first = build.compiled()
    assert first is not None
    stamp = first.stat().st_mtime_ns
    assert build.compiled() == first
    assert first.stat().st_mtime_ns == stamp
    assert list(tmp_path.iterdir()) == [first]
