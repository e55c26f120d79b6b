"""Figures of single layers against their formulas."""

import pytest
import torch
from torch import nn

from tunesmith.train.layer_watch import look, norms, place_of, told


def test_places_of_parameters():
    names = ["model.layers.3.mlp.w", "model.layers.11.norm", "model.embed_tokens.weight", "lm_head.weight"]
    assert [place_of(name) for name in names] == ["003", "011", "embedding", "top"]


def test_a_layer_has_one_norm_over_all_it_trains():
    tensors = {"layers.0.a": torch.full((3,), 2.0), "layers.0.b": torch.full((1,), 2.0), "layers.1.a": torch.ones(4)}
    assert norms(tensors) == {"000": 4.0, "001": 2.0}


def test_gradients_and_updates_are_told_by_layer():
    masters = {"layers.0.a": nn.Parameter(torch.full((4,), 3.0)), "layers.1.a": nn.Parameter(torch.zeros(4))}
    masters["layers.0.a"].grad = torch.full((4,), 0.5)
    seen = look(masters)
    with torch.no_grad():
        masters["layers.0.a"].add_(0.03)
    found = dict(told(seen, masters))
    assert found["layers/000/grad_norm"] == 1.0
    assert found["layers/000/update_ratio"] == pytest.approx(0.01, rel=1e-4)
    assert (found["layers/001/grad_norm"], found["layers/001/update_ratio"]) == (0.0, 0.0)
