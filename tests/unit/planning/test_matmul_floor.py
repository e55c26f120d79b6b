"""The floor of a model counts its matrix products as the formulas do, each at its own speed."""

import pytest
import torch
from tests.tiny import tiny_model_folder

from tunesmith.models.config import FreezeConfig, FullConfig, LoraConfig, ModelConfig
from tunesmith.models.inventory import take_inventory, trainable
from tunesmith.models.load import load_model
from tunesmith.planning import floor
from tunesmith.planning.calibration import flops_per_token, forward_flops
from tunesmith.train.work import Rates


@pytest.fixture
def counted(monkeypatch):
    """A product of any shape takes as many seconds as it has FLOP."""

    def timed(known, weight):
        return 2.0 * weight.numel()

    monkeypatch.setattr(floor, "timed", timed)
    monkeypatch.setattr(
        floor, "pair_seconds", lambda model, dtype, device: 2.0 * model.heads * model.head_dim * model.layers
    )


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
@pytest.mark.parametrize("adapter", [LoraConfig(rank=4), FullConfig(), FreezeConfig(last=1)])
def test_the_products_of_a_model_are_those_of_the_formulas(tmp_path, adapter, architecture):
    folder = tiny_model_folder(tmp_path, architecture)
    inventory = take_inventory(folder)
    trained = trainable(inventory, adapter)
    model = load_model(folder, ModelConfig(path=str(folder), adapter=adapter))
    rates, forward = floor.matmul_seconds(model, inventory, trained.lowest_layer)
    expected = Rates.of(lambda scored, length: flops_per_token(inventory, trained, scored, length))
    norms = trained.base and sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad and parameter.ndim == 1
    )  # the formula takes every trained parameter for a weight of a product
    lora = 2 * trained.adapters  # the floor counts low-rank products in the forward pass too, and once for their rows
    assert rates.token == pytest.approx(expected.token - 2 * norms * (not isinstance(adapter, FullConfig)), rel=1e-6)
    assert rates.scored == pytest.approx(expected.scored)
    assert rates.pair == pytest.approx(expected.pair)
    plain = Rates.of(lambda scored, length: forward_flops(inventory, scored, length))
    assert forward.token == pytest.approx(plain.token + lora)
    assert (forward.scored, forward.pair) == pytest.approx((plain.scored, plain.pair))


def test_a_measured_product_takes_time_and_is_measured_once():
    known: dict[tuple[int, ...], float] = {}
    seconds = floor.timed(known, torch.ones(32, 64))
    assert 0 < seconds < 1
    assert floor.timed(known, torch.zeros(32, 64)) == seconds
    assert len(known) == 1
