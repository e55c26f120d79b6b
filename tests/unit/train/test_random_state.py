"""Every global generator continues where it was captured."""

import json
import random

import numpy as np
import torch

from tunesmith.train import random_state, saving


def _draw() -> tuple:
    return (
        [random.random() for _ in range(3)],
        random.gauss(0, 1),
        np.random.rand(3).tolist(),
        np.random.standard_normal(),
        torch.rand(3).tolist(),
        torch.randperm(10).tolist(),
    )


def test_restore_continues_every_generator():
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    random.gauss(0, 1), np.random.standard_normal()  # leaves the second half of a pair in both
    tensors, state = random_state.capture()
    expected = _draw()
    _draw()
    assert random_state.restore(tensors, state) == 0
    assert _draw() == expected


def test_the_state_survives_json_and_holds_only_tensors():
    tensors, state = random_state.capture()
    assert json.loads(json.dumps(state)) == state
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    expected = _draw()
    random_state.restore(tensors, json.loads(json.dumps(state)))
    assert _draw() == expected


def test_missing_cuda_devices_are_counted():
    tensors, state = random_state.capture()
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    extra = {f"cuda{index}": torch.zeros(16, dtype=torch.uint8) for index in range(here, here + 2)}
    if here == 0:
        assert random_state.restore({**tensors, **extra}, {**state, "cuda_devices": 2}) == 2


def test_a_rank_that_begins_later_draws_as_no_other_and_the_same_each_time():
    places = [(seed, rank, step) for seed in (0, 1) for rank in range(4) for step in (2, 4)]
    seeds = [saving.seed_of(*place) for place in places]
    assert len(set(seeds)) == len(places)
    assert seeds == [saving.seed_of(*place) for place in places]
    assert all(0 <= seed < 2**32 for seed in seeds)
