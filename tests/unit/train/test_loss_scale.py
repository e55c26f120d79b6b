"""The loss scale of fp16 falls and grows by its rules, is exact after a resume, and leaves no trace in gradients."""

import json
import math

import pytest
import torch
from torch import nn

from tunesmith.distributed.mesh import Mesh
from tunesmith.train.config import LossScaleConfig
from tunesmith.train.loss_scale import LossScale
from tunesmith.train.optimizer import Optimizer
from tunesmith.train.optimizers import AdamW


def scale_of(**settings) -> LossScale:
    return LossScale(LossScaleConfig(**settings))


def test_it_halves_at_an_overflow_and_doubles_after_good_steps_in_a_row():
    scale = scale_of(initial=1024, every=3)
    norms = [1.0, 1.0, math.inf, 1.0, 1.0, math.nan, 1.0, 1.0, 1.0, 1.0]
    told = [scale.overflowed(2.0, norm) for norm in norms]
    assert told == [not math.isfinite(norm) for norm in norms]
    assert scale.value == 1024 / 4 * 2
    assert scale.metrics() == {"train/loss_scale": 512.0, "train/overflows": 2.0}


def test_what_no_scale_can_help_is_left_to_the_guard():
    scale = scale_of(initial=2)
    assert not scale.overflowed(math.nan, math.nan)
    assert scale.overflowed(1.0, math.inf)
    assert scale.value == 1
    assert not scale.overflowed(1.0, math.inf)
    assert scale.overflows == 1


def test_a_resumed_scale_decides_alike():
    settings = {"initial": 3000.0, "every": 2, "growth": 1.7, "backoff": 0.3}
    norms = [1.0, math.inf, 1.0, 1.0, 1.0, math.inf, 1.0, 1.0]
    steady, first, second = (scale_of(**settings) for _ in range(3))
    for norm in norms:
        steady.overflowed(1.0, norm)
    for norm in norms[:3]:
        first.overflowed(1.0, norm)
    second.restore(json.loads(json.dumps(first.state())))
    for norm in norms[3:]:
        second.overflowed(1.0, norm)
    assert second.state() == steady.state()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradients_come_out_without_the_scale(dtype):
    """Small ones that fp16 would lose come through; the norm is of gradients without the scale."""
    found = {}
    for scale in (1.0, 4096.0):
        weight = nn.Parameter(torch.full((4,), 0.5, dtype=dtype))
        optimizer = Optimizer({"w": weight}, AdamW())
        optimizer.scale = scale
        loss = (weight * torch.tensor([1.0, 0.5, 2.0**-20, 2.0**-26], dtype=torch.float32)).sum()
        (loss * scale).backward()
        norm = optimizer.finish(Mesh())
        assert norm == pytest.approx(1.25**0.5)
        found[scale] = optimizer.gradients()[0]
    assert found[4096.0].tolist() == [1.0, 0.5, 2.0**-20, 2.0**-26]
    assert (found[1.0][3] == 0) == (dtype == torch.float16)
