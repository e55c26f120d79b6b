"""bitsandbytes' paged AdamW: chosen on a GPU alone, near torch's AdamW, resumed to the bit.

Without a GPU it works on states that are not paged, so that all but the paging is seen there as well.
"""

import pytest
import torch
from tests.unit.train.test_optimizers import Network
from tests.unit.train.test_pages import assert_same, train

from tunesmith.errors import CheckpointError
from tunesmith.train.in_backward import BackwardOptimizer
from tunesmith.train.optimizer import Optimizer
from tunesmith.train.optimizers import AdamW, AdamW8bit
from tunesmith.train.optimizers.unified import UnifiedAdamW, is_unified

RULES = [AdamW(lr=1e-2, weight_decay=0.1, paging="auto"), AdamW8bit(lr=1e-2, weight_decay=0.1, paging="auto")]
NAMES = ["adamw", "adamw8bit"]


@pytest.fixture
def without_pages(monkeypatch):
    """As on a GPU: no file, bitsandbytes' optimiser in its place."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    monkeypatch.setattr("tunesmith.train.optimizer.open_pages", lambda *_: None)
    for module in ("adamw", "adamw8bit"):
        monkeypatch.setattr(
            f"tunesmith.train.optimizers.{module}.is_unified", lambda settings, groups: settings.paging != "off"
        )


def kinds(optimizer: Optimizer) -> set[type]:
    return {type(stepper) for stepper in optimizer.steppers.values()}


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_a_cpu_has_no_use_for_it(rule, tmp_path):
    optimizer = Optimizer(Network().named(), rule, folder=tmp_path)
    assert not is_unified(rule, optimizer.groups)
    assert UnifiedAdamW not in kinds(optimizer)
    assert optimizer.pages is not None


@pytest.mark.parametrize("kind", [Optimizer, BackwardOptimizer])
@pytest.mark.parametrize("rule", RULES, ids=NAMES)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_steps_are_near_those_of_torch_and_go_on_to_the_bit(rule, kind, without_pages):
    plain, steady, first, second = (Network() for _ in range(4))
    exact = Optimizer(plain.named(), AdamW(lr=1e-2, weight_decay=0.1))
    ours, stopped, resumed = (kind(model.named(), rule) for model in (steady, first, second))
    assert kinds(ours) == {UnifiedAdamW}
    train(plain, exact, range(8), limit=0)
    train(steady, ours, range(8), limit=0)
    train(first, stopped, range(3), limit=0)
    start = Network().named()
    for name, parameter in plain.named().items():
        moved = (parameter - start[name]).norm()
        off = (parameter - ours.parameters[name]).norm() / moved
        assert off < (1e-4 if rule.name == "adamw" else 0.1), name
    second.load_state_dict(first.state_dict())
    resumed.restore({name: value.clone() for name, value in stopped.state().items()})
    train(second, resumed, range(3, 8), limit=0)
    assert_same(ours, resumed)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_states_of_adamw_go_over_and_our_own_8_bits_do_not(without_pages):
    plain, model = Network(), Network()
    exact, ours = Optimizer(plain.named(), AdamW(lr=1e-2)), Optimizer(model.named(), RULES[0])
    train(plain, exact, range(3))
    ours.restore({name: value.clone() for name, value in exact.state().items()})
    wanted, found = exact.state(), ours.state()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    own = Network()
    kept = Optimizer(own.named(), AdamW8bit(lr=1e-2))
    train(own, kept, range(2))
    with pytest.raises(CheckpointError) as caught:
        Optimizer(Network().named(), RULES[1]).restore(kept.state())
    assert caught.value.diagnostic.code == "E307"
    assert caught.value.diagnostic.fixes[0].set == {"train.optimizer.paging": "off"}


@pytest.mark.gpu
@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_large_states_are_paged_on_a_gpu_and_go_on(rule):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

    def made():
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(512, 512, bias=False), torch.nn.Linear(512, 8)).cuda()
        return layers, Optimizer(dict(layers.named_parameters()), rule)

    def step(model, optimizer):
        optimizer.set_rate(1.0)
        model(torch.ones(3, 512, device="cuda")).pow(2).mean().backward()
        optimizer.step()
        optimizer.clear()

    model, optimizer = made()
    before = torch.cuda.memory_allocated()
    for _ in range(4):
        step(model, optimizer)
    assert torch.cuda.memory_allocated() - before < 2**20 // 2  # the means of 512 x 512 numbers are not there
    large = optimizer.steppers["0.weight"].inner.state[optimizer.masters["0.weight"]]["state1"]
    assert large.is_paged
    again, resumed = made()
    again.load_state_dict(model.state_dict())
    resumed.restore({name: value.clone() for name, value in optimizer.state().items()})
    step(model, optimizer)
    step(again, resumed)
    assert_same(optimizer, resumed)
