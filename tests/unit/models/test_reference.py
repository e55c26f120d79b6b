"""References: the same numbers as a model of their own, and a model left as it was."""

import copy

import numpy as np
import pytest
import torch
from tests.unit.models.architectures import VOCABULARY, build

from tunesmith.data.packing import batch_of
from tunesmith.models.adapters import attach, trainable
from tunesmith.models.config import FreezeConfig, FullConfig, LoraConfig
from tunesmith.models.forward import score_only
from tunesmith.models.reference import AdapterOff, StartWeights
from tunesmith.types import Example


def pairs(count: int = 3):
    rng = np.random.default_rng(1)
    weights = np.r_[np.zeros(5), np.ones(7)].astype(np.float32)
    return batch_of(
        [Example(rng.integers(3, VOCABULARY, 12), weights, "a", line, (5, 9)) for line in range(count)],
        indices=range(count),
    )


def disturb(model) -> None:
    torch.manual_seed(3)
    for parameter in trainable(model).values():
        parameter.data.add_(0.05 * torch.randn_like(parameter))


@pytest.mark.parametrize(
    "adapter", [LoraConfig(rank=4), FullConfig(), FreezeConfig(last=1)], ids=lambda one: one.method
)
def test_start_weights_are_the_model_as_it_was(adapter):
    model = attach(build("llama"), adapter)
    disturb(model)
    before = score_only(model, pairs()).logprobs
    reference = StartWeights(model)
    disturb(model)
    after = score_only(model, pairs()).logprobs
    assert not torch.equal(before, after)
    assert torch.equal(reference.logprobs(pairs()), before)
    assert torch.equal(score_only(model, pairs()).logprobs, after)


def test_the_base_below_a_new_adapter_is_the_start():
    model = attach(build("qwen3"), LoraConfig(rank=4))
    start = score_only(model, pairs()).logprobs
    reference = AdapterOff(model)
    assert torch.equal(reference.logprobs(pairs()), start)
    disturb(model)
    names = set(trainable(model))
    torch.testing.assert_close(reference.logprobs(pairs()), start, atol=0, rtol=0)
    assert set(trainable(model)) == names
    assert not torch.equal(score_only(model, pairs()).logprobs, start)


def test_a_reference_follows_the_policy_by_its_share():
    model = attach(build("llama"), FullConfig())
    reference = StartWeights(model)
    start = copy.deepcopy(reference.start)
    disturb(model)
    reference.follow(0.25)
    for name, parameter in trainable(model).items():
        torch.testing.assert_close(reference.start[name], 0.75 * start[name] + 0.25 * parameter.detach())
    reference.follow(1.0)
    assert torch.equal(reference.logprobs(pairs()), score_only(model, pairs()).logprobs)


def test_a_model_stays_whole_when_the_forward_fails():
    model = attach(build("llama"), FullConfig())
    reference = StartWeights(model)
    disturb(model)
    own = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}
    with pytest.raises(RuntimeError), reference.in_place():
        raise RuntimeError
    assert all(torch.equal(own[name], parameter) for name, parameter in trainable(model).items())
