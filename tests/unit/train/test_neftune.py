"""Noise on the embeddings."""

import torch
from tests.objectives.given import batch, given
from tests.unit.models.architectures import build

from tunesmith.models.forward import base_model, score
from tunesmith.objectives import SFT
from tunesmith.train.step import noisy_embeddings


def test_noise_changes_the_loss_and_is_bounded_by_its_formula():
    torch.manual_seed(0)
    model, one = build("llama"), batch(SFT(), given(SFT()))
    noisy = noisy_embeddings(model, one, 5.0)
    plain = base_model(model).get_input_embeddings()(one.tokens)
    lengths = one.segments[:, 1] - one.segments[:, 0]
    bound = (5.0 / (lengths * plain.shape[-1]).float().sqrt()).repeat_interleave(lengths)
    assert ((noisy - plain).abs() <= bound[:, None] + 1e-6).all()
    assert (noisy - plain).abs().max() > bound.min() / 2
    loss = SFT()(score(model, one, noisy), one).sum
    calm = SFT()(score(model, one), one).sum
    assert loss != calm
    assert abs(loss - calm) / SFT().count(one) < 1.0
