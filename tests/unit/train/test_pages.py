"""States in a file: the same steps to the bit, little of them in memory, and no file that stays."""

import errno
import gc
import mmap
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.unit.train.test_optimizers import Network
from torch import nn

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import MachineError
from tunesmith.train import pages
from tunesmith.train.durable import write_tensors
from tunesmith.train.in_backward import BackwardOptimizer
from tunesmith.train.optimizer import Optimizer, clip
from tunesmith.train.optimizers import OPTIMIZERS, SGD, AdamW, AdamW8bit, GaLore, Lion, ScheduleFree
from tunesmith.train.pages import Lent, Pages
from tunesmith.train.stored import Stored

STEPS = 24
DECAYING = {"lr": 1e-2, "weight_decay": 0.1}
RULES = [
    *[kind(**DECAYING) for kind in OPTIMIZERS],
    SGD(momentum=0.0, **DECAYING),
    GaLore(rank=8, every=5, states="int8", **DECAYING),
    AdamW(rounding="stochastic", **DECAYING),
    AdamW8bit(rounding="kahan", **DECAYING),
]
NAMES = [f"{rule.name}-{number}" for number, rule in enumerate(RULES)]


@pytest.fixture(autouse=True)
def all_are_large(monkeypatch):
    """The smallest states are paged as well."""
    monkeypatch.setattr(pages, "SMALLEST", 1)


def paged(rule):
    return rule.model_copy(update={"paging": "file"})


def train(model: nn.Module, optimizer: Optimizer, steps, limit: float = 0.02) -> list[bool]:
    """Steps on gradients that follow from their number; returns in which ones the norm was cut down."""
    cut = []
    for step in steps:
        words = torch.arange(step, step + 7) % 11
        hidden = model.layers[1](model.layers[0](model.embed_tokens(words)))
        optimizer.set_rate(1 / (1 + step))
        optimizer.complete(lambda: True)
        (model.lm_head(hidden).float().pow(2).mean() * (1 + step % 3)).backward()
        norm = optimizer.finish(Mesh())
        clip(optimizer.gradients(), norm, limit)
        cut.append(norm > limit)
        optimizer.step()
        optimizer.clear()
    return cut


def assert_same(one: Optimizer, other: Optimizer) -> None:
    for name, parameter in one.parameters.items():
        assert torch.equal(parameter, other.parameters[name]), name
    wanted, found = one.state(), other.state()
    assert wanted.keys() == found.keys()
    assert [key for key in wanted if not torch.equal(wanted[key], found[key])] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_steps_equal_those_in_memory(rule, dtype, tmp_path):
    """With decay, falling rates and clipping, for every optimiser."""
    plain, model = Network(dtype), Network(dtype)
    steady, ours = Optimizer(plain.named(), rule), Optimizer(model.named(), paged(rule), folder=tmp_path)
    assert any(train(plain, steady, range(STEPS)))
    train(model, ours, range(STEPS))
    assert_same(steady, ours)
    assert bool(ours.pages.pages) == (rule.state_bytes("", (256, 256)) > 0)
    with steady.averaged(), ours.averaged():
        assert_same(steady, ours)


@pytest.mark.parametrize("rule", [AdamW(**DECAYING), AdamW8bit(**DECAYING)], ids=["adamw", "adamw8bit"])
def test_updates_in_the_backward_pass_equal_those_in_memory(rule, tmp_path):
    plain, model = Network(torch.bfloat16), Network(torch.bfloat16)
    steady, ours = (
        BackwardOptimizer(plain.named(), rule),
        BackwardOptimizer(model.named(), paged(rule), (), 0, tmp_path),
    )
    train(plain, steady, range(STEPS))
    train(model, ours, range(STEPS))
    assert_same(steady, ours)


@pytest.mark.parametrize("ways", [(True, True), (True, False), (False, True)], ids=["file", "to memory", "to a file"])
@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_a_state_goes_on_to_the_bit_in_memory_or_in_a_file(rule, ways, tmp_path):
    plain, first, second = Network(), Network(), Network()
    steady = Optimizer(plain.named(), rule)
    train(plain, steady, range(STEPS))
    before, after = (paged(rule) if way else rule for way in ways)
    stopped = Optimizer(first.named(), before, folder=tmp_path)
    train(first, stopped, range(11))
    write_tensors(tmp_path / "state.safetensors", stopped.state(), 11)
    second.load_state_dict(first.state_dict())
    resumed = Optimizer(second.named(), after, folder=tmp_path)
    resumed.restore(Stored(tmp_path / "state.safetensors"))
    train(second, resumed, range(11, STEPS))
    assert_same(steady, resumed)


def resident(optimizer: Optimizer) -> int:
    """Bytes of the file's pages that this process has in memory."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            ours = str(optimizer.pages.folder) in line
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


class Wide(nn.Module):
    """Eight matrices of 1 MB."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(512, 512, bias=False) for _ in range(8))


def wide(tmp_path, rule=None):
    model = Wide()
    return model, Optimizer(dict(model.named_parameters()), rule or AdamW(paging="file"), folder=tmp_path)


def backward(model: Wide) -> None:
    hidden = torch.ones(3, 512)
    for layer in model.layers:
        hidden = torch.tanh(layer(hidden))
    hidden.sum().backward()


def test_states_of_one_parameter_are_in_memory_at_a_time(tmp_path, monkeypatch):
    model, optimizer = wide(tmp_path)
    seen = []
    drop = pages.Page.drop

    def look(page):
        seen.append(resident(optimizer))
        drop(page)

    monkeypatch.setattr(pages.Page, "drop", look)
    for _ in range(3):
        backward(model)
        optimizer.step()
    one = 2 * 4 * 512 * 512
    assert len(optimizer.pages.pages) == 8
    assert max(seen) == one  # while a parameter is updated
    assert resident(optimizer) == 0
    write_tensors(tmp_path / "state.safetensors", optimizer.state(), 3)
    assert max(seen) == one  # a checkpoint goes through them in the same way
    assert resident(optimizer) <= one
    again, resumed = wide(tmp_path)
    again.load_state_dict(model.state_dict())
    seen.clear()
    resumed.restore(Stored(tmp_path / "state.safetensors"))
    assert resident(resumed) == 0
    assert_same(optimizer, resumed)


def test_a_look_at_averages_leaves_nothing_in_memory(tmp_path):
    model, optimizer = wide(tmp_path, rule=ScheduleFree(paging="file"))
    backward(model)
    optimizer.step()
    with optimizer.averaged():
        assert resident(optimizer) == 0


def test_the_file_has_no_name_and_its_room_is_given_back(tmp_path):
    model, optimizer = wide(tmp_path)
    file = optimizer.pages.file.fileno()
    assert os.fstat(file).st_blocks * 512 >= 8 * 8 * 512 * 512  # before the first step
    assert os.fstat(file).st_nlink == 0
    assert list(tmp_path.iterdir()) == []
    backward(model)
    optimizer.step()
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    optimizer.close()
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


def test_a_named_folder_takes_the_place_of_the_runs(tmp_path):
    _, optimizer = wide(tmp_path / "run", rule=AdamW(paging="auto", paging_folder=str(tmp_path / "other" / "disk")))
    assert optimizer.pages.folder == tmp_path / "other" / "disk"
    assert not (tmp_path / "run").exists()


def test_small_states_and_counters_stay_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "SMALLEST", 2**16)
    model = Network()
    optimizer = Optimizer(model.named(), AdamW(paging="file"), folder=tmp_path)
    train(model, optimizer, range(2))
    assert optimizer.pages.pages == {}
    model, optimizer = wide(tmp_path)
    backward(model)
    optimizer.step()
    assert all(page.tensors.keys() == {"exp_avg", "exp_avg_sq"} for page in optimizer.pages.pages.values())


def test_a_disk_that_is_full_is_told_before_the_first_step(tmp_path, monkeypatch):
    def refuse(file, start, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(MachineError) as caught:
        wide(tmp_path)
    assert caught.value.diagnostic.code == "E304"
    assert "the disk is full" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_becomes_full_ends_the_step_and_no_more(tmp_path, monkeypatch):
    model, optimizer = wide(tmp_path, Lion(paging="file"))

    def refuse(file, content, place):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", refuse)
    backward(model)
    with pytest.raises(MachineError) as caught:
        optimizer.step()
    assert caught.value.diagnostic.fixes[1].set == {"train.optimizer.paging": "off"}


def test_states_of_another_shape_get_a_place_of_their_own(tmp_path):
    kept = Pages(tmp_path, 0)
    state = {"step": torch.tensor(1.0), "mean": torch.arange(5000.0)}
    kept.keep("w", state)
    first = state["mean"]
    state["mean"] = torch.arange(7000.0)
    kept.keep("w", state)
    assert state["mean"] is not first
    assert torch.equal(state["mean"], torch.arange(7000.0))
    assert kept.used % mmap.PAGESIZE == 0
    assert torch.equal(Lent({"w.mean": state["mean"]}, kept)["w.mean"], torch.arange(7000.0))


def test_stored_tensors_are_those_that_were_written(tmp_path):
    tensors = {
        "half": torch.randn(3, 5).bfloat16(),
        "codes": torch.arange(7, dtype=torch.uint8),
        "step": torch.tensor(3.0),
        "none": torch.zeros(0, 4),
    }
    write_tensors(tmp_path / "t.safetensors", tensors, 1)
    stored, loaded = Stored(tmp_path / "t.safetensors"), load_file(tmp_path / "t.safetensors")
    assert stored.keys() == tensors.keys()
    for name, value in tensors.items():
        assert stored[name].dtype == value.dtype
        assert torch.equal(stored[name], value)
        assert torch.equal(stored[name], loaded[name])
