"""No setting of sampling leads outside the vocabulary, or to a number that is none."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunesmith.rollout.choosing import LARGEST, Chooser, Sampling, adjusted, choose_each, narrowed

BIGGEST, LEAST = sys.float_info.max, 5e-324
EDGES = [0.0, LEAST, 1e-300, 1e-45, 1e-38, 1e-6, 1.0, 10.0, 1e38, 1e300, BIGGEST]
POSITIVE = st.sampled_from(EDGES[1:]) | st.floats(LEAST, BIGGEST)
SIGNED = st.sampled_from([sign * edge for edge in EDGES for sign in (1, -1)]) | st.floats(-BIGGEST, BIGGEST)
SHARE = st.sampled_from([LEAST, 1e-300, 1e-45, 1e-7, 0.5, 0.999999, 1 - 2**-53, 1.0]) | st.floats(LEAST, 1)
WIDTHS = (2, 7, 600)  # the last is wider than what is looked at first

samplings = st.builds(
    Sampling,
    st.just(4),
    temperature=st.just(0.0) | POSITIVE,
    top_p=SHARE,
    top_k=st.sampled_from([0, 1, 2, 599, 600, 2**63, 10**400]),
    min_p=st.just(0.0) | SHARE,
    presence=SIGNED,
    frequency=SIGNED,
    repetition=POSITIVE,
    bias=st.lists(st.tuples(st.integers(0, 1), SIGNED), max_size=3).map(tuple),
)
kinds = st.sampled_from(["usual", "equal", "huge", "mixed"])


def scores(kind: str, width: int, seed: int) -> torch.Tensor:
    found = np.random.default_rng(seed).normal(size=width)
    if kind == "equal":
        found[:] = found[0]
    elif kind == "huge":
        found = np.sign(found) * LARGEST
    elif kind == "mixed":
        found = found * 10.0 ** np.random.default_rng(seed + 1).integers(-45, 38, width)
    return torch.tensor(found, dtype=torch.float32)[None]


def draws() -> st.SearchStrategy[float]:
    return st.sampled_from([0.0, LEAST, 0.5, 1 - 2**-53]) | st.floats(0, 1, exclude_max=True)


def check(sampling: Sampling, kind: str, width: int, seed: int, draw: float) -> None:
    logits = scores(kind, width, seed)
    assert torch.isfinite(logits).all()
    own = None if sampling.temperature == 0 else torch.tensor(draw, dtype=torch.float64)
    allowed = torch.tensor([True] * (width - 1) + [False]) if seed % 2 else None
    row = Chooser(sampling, own, [0, 1], [1] * (seed % 3), allowed)
    after = adjusted(logits, [row])
    kept = slice(width - 1) if allowed is not None else slice(width)
    assert torch.isfinite(after[:, kept]).all()
    (token,) = choose_each(logits, [row])
    assert 0 <= token < (width if allowed is None else width - 1)
    probabilities = narrowed(after.softmax(-1), sampling)
    assert torch.isfinite(probabilities).all()
    assert (probabilities > 0).any()
    beside = torch.cat([scores("usual", width, 3), logits])
    assert choose_each(beside, [Chooser(Sampling(4), None), row])[1] == token


@given(samplings, kinds, st.sampled_from(WIDTHS), st.integers(0, 5), draws())
@example(Sampling(4, temperature=1e-300), "usual", 7, 0, 0.5)
@example(Sampling(4, repetition=1e-300), "usual", 7, 1, 0.5)
@example(Sampling(4, temperature=1.0, top_p=1e-300), "usual", 7, 0, 0.5)
@example(Sampling(4, temperature=1.0, presence=BIGGEST, frequency=-BIGGEST), "huge", 7, 5, 0.5)
@example(Sampling(4, temperature=BIGGEST), "huge", 7, 1, 1 - 2**-53)
@settings(deadline=None, max_examples=400)
def test_every_finite_setting_chooses_a_token_of_the_vocabulary(sampling, kind, width, seed, draw):
    check(sampling, kind, width, seed, draw)


@pytest.mark.parametrize("temperature", [LEAST, 1e-300, 1e-6, 1e-4])
def test_small_temperatures_come_to_the_likeliest_token(temperature):
    logits = scores("usual", 600, 0)
    row = Chooser(Sampling(4, temperature=temperature), torch.tensor(0.999, dtype=torch.float64))
    assert choose_each(logits, [row]) == [int(logits.argmax())]
