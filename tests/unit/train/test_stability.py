"""The numerical guard decides before the update, and decides the same after a resume."""

import json
import math
import random
from pathlib import Path

import pytest
import torch

from tunesmith.train.config import StabilityConfig
from tunesmith.train.stability import Guard, nonfinite_gradients

BAD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("place", ["loss", "norm"])
def test_n01_nonfinite_step_is_skipped_with_evidence(value, place):
    guard = Guard(StabilityConfig())
    assert guard.judge(1, 2.0, 1.0).action == "update"
    loss, norm = (value, 1.0) if place == "loss" else (2.0, value)
    verdict = guard.judge(2, loss, norm, ["train.jsonl:7"])
    assert verdict.action == "skip"
    assert verdict.evidence["records"] == ["train.jsonl:7"]
    json.dumps(verdict.evidence, allow_nan=False)
    assert guard.skipped == 1


def test_n01_policy_stop_stops_at_the_first():
    verdict = Guard(StabilityConfig(on_nonfinite="stop")).judge(5, math.nan, 1.0, ["a.jsonl:3"])
    error = verdict.error(Path("checkpoints/step-4"), 1e-3)
    assert (verdict.action, error.exit_code) == ("stop", 6)
    for part in ("step 5", "a.jsonl:3", "step-4", "train.optimizer.lr=0.0001"):
        assert part in str(error)


def test_n03_bad_steps_in_a_row_stop():
    guard = Guard(StabilityConfig(max_skips=3))
    actions = [guard.judge(step, math.nan, 1.0).action for step in (1, 2)]
    assert guard.judge(3, 1.0, 1.0).action == "update"
    actions += [guard.judge(step, math.nan, 1.0).action for step in (4, 5, 6)]
    assert actions == ["skip", "skip", "skip", "skip", "stop"]


def test_n03_without_a_checkpoint_the_error_says_so():
    verdict = Guard(StabilityConfig(max_skips=1)).judge(1, math.inf, 1.0)
    assert "no checkpoint" in str(verdict.error(None, 1e-3))


def _warm(guard: Guard, steps: int, seed: int = 0) -> None:
    noise = random.Random(seed)
    for step in range(steps):
        assert guard.judge(step, 2 + noise.gauss(0, 0.1), 1 + noise.gauss(0, 0.05)).action == "update"


@pytest.mark.parametrize(("loss", "norm"), [(3.5, 1.0), (2.0, 2.0)])
def test_n04_spike_is_skipped_and_leaves_the_window_alone(loss, norm):
    guard = Guard(StabilityConfig(on_spike="skip"))
    _warm(guard, 100)
    before = guard.state()
    verdict = guard.judge(100, loss, norm, ["a:1"])
    assert (verdict.action, verdict.evidence["kind"]) == ("skip", "spike")
    after = guard.state()
    assert (after["losses"], after["norms"]) == (before["losses"], before["norms"])
    assert guard.judge(101, 2.0, 1.0).action == "update"


def test_n04_no_spike_is_seen_below_half_a_window_when_off_or_downwards():
    young = Guard(StabilityConfig(on_spike="skip"))
    _warm(young, 63)
    assert young.judge(63, 50.0, 1.0).action == "update"
    off = Guard(StabilityConfig())
    _warm(off, 128)
    assert off.judge(128, 50.0, 1.0).action == "update"
    low = Guard(StabilityConfig(on_spike="skip"))
    _warm(low, 128)
    assert low.judge(128, 0.1, 0.1).action == "update"


def test_n04_a_flat_window_does_not_turn_rounding_into_a_spike():
    guard = Guard(StabilityConfig(on_spike="skip", window=8))
    actions = {guard.judge(step, 2.0 + 1e-6 * step, 1.0).action for step in range(50)}
    assert actions == {"update"}


def test_n04_spikes_in_a_row_stop():
    guard = Guard(StabilityConfig(on_spike="skip", max_skips=3))
    _warm(guard, 128)
    verdicts = [guard.judge(128 + step, 9.0, 1.0) for step in range(3)]
    assert [verdict.action for verdict in verdicts] == ["skip", "skip", "stop"]
    assert verdicts[-1].error(None, 1e-3).diagnostic.code == "E121"


@pytest.mark.parametrize("cut", range(0, 300, 23))
def test_n05_decisions_after_a_resume_are_the_same(cut):
    settings = StabilityConfig(on_spike="skip", window=32, sigma=2.0, max_skips=4, diverged_steps=3)
    noise = random.Random(5)
    steps = [(noise.gauss(2, 0.3), abs(noise.gauss(1, 0.3))) for _ in range(300)]
    steps[40] = (math.nan, 1.0)
    steps[8:11] = [(60.0, 1.0)] * 3  # before the window is half full
    straight = Guard(settings)
    expected = [straight.judge(index, *step) for index, step in enumerate(steps)]
    first, second = Guard(settings), Guard(settings)
    found = [first.judge(index, *step) for index, step in enumerate(steps[:cut])]
    second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
    found += [second.judge(cut + index, *step) for index, step in enumerate(steps[cut:])]
    assert found == expected
    assert second.state() == straight.state()
    assert {"skip", "update", "stop"} == {verdict.action for verdict in expected}


def test_n10_a_loss_far_above_the_first_stops_from_the_first_steps_on():
    guard = Guard(StabilityConfig(), guess=math.log(400))
    verdicts = [guard.judge(step, loss, 1.0, ["a:1"]) for step, loss in enumerate([5.9, 20, 50, 70, 55, 60], 1)]
    assert [verdict.action for verdict in verdicts] == ["update"] * 5 + ["stop"]
    error = verdicts[-1].error(Path("checkpoints/step-4"), 1.0)
    assert (error.exit_code, error.diagnostic.code) == (6, "E530")
    assert error.diagnostic.fixes[0].set == {"train.optimizer.lr": 0.1}
    for part in ("step 6: the loss 60 is above 11.8, and was 5.9 at first", "since step 2", "newest", "step-4"):
        assert part in str(error)


def test_n10_a_loss_that_comes_back_now_and_then_is_gone_all_the_same():
    guard = Guard(StabilityConfig())
    losses = [0.69, 9.8, 40, 61, 33, 0.1, 12, 138, 141]
    assert [guard.judge(step, loss, 1.0).action for step, loss in enumerate(losses)] == ["update"] * 8 + ["stop"]


QUIET = {
    "warm-up that rises": (math.log(400), [6.0 + 0.1 * min(step, 15) for step in range(60)]),
    "a poor start": (math.log(400), [30.0 + (step % 7) for step in range(60)]),
    "records of all kinds, one by one": (math.log(400), [0.02 if step % 2 else 7.9 for step in range(60)]),
    "learned by heart, then new data": (math.log(50_000), [0.01] * 20 + [9.0] * 40),
    "spikes of pretraining": (math.log(50_000), [3.0, 12.9, 12.9, 12.9, 3.0, 3.0, 3.0] * 9),
    "preferences": (None, [0.69 + 4 * (step % 3) for step in range(60)]),
    "negative": (None, [-3.0 + 0.3 * step for step in range(60)]),
    "nothing at first": (None, [0.0] + [5.0] * 60),
    "squares": (None, [25.0 + 100 * (step % 2) for step in range(60)]),
}


@pytest.mark.parametrize(("guess", "losses"), QUIET.values(), ids=list(QUIET))
def test_n10_ordinary_losses_raise_no_alarm(guess, losses):
    guard = Guard(StabilityConfig(), guess)
    assert {guard.judge(step, loss, 1.0).action for step, loss in enumerate(losses)} == {"update"}


def test_n10_it_can_be_switched_off():
    guard = Guard(StabilityConfig(diverged_steps=0), 1.0)
    assert {guard.judge(step, 10.0**step, 1.0).action for step in range(30)} == {"update"}


def test_n10_what_was_updated_in_the_backward_pass_has_diverged_as_well():
    guard = Guard(StabilityConfig(diverged_steps=1))
    guard.judge(1, 1.0, 1.0)
    assert guard.judge(2, 99.0, 1.0).too_late().evidence["kind"] == "diverged"


def test_n06_gradients_beyond_fp16_are_told_with_the_type_that_holds_them():
    verdict = Guard(StabilityConfig(max_skips=1)).judge(3, 1.0, math.inf)
    assert "bfloat16" not in str(verdict.error(None, 1e-3))
    verdict.evidence["loss_scale"] = 1.0
    assert verdict.error(None, 1e-3).diagnostic.fixes[0].set == {"model.dtype": "bfloat16"}


def test_n02_parameters_with_bad_gradients_are_named():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model(torch.ones(3)).sum().backward()
    assert nonfinite_gradients(model.named_parameters()) == []
    model[1].weight.grad[1, 2] = math.nan
    assert nonfinite_gradients(model.named_parameters()) == ["1.weight"]
