"""Updates inside the backward pass are the ordinary ones to the bit, with no gradient left behind."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import tiny_model_folder
from tests.unit.models.architectures import ARCHITECTURES
from tests.unit.models.test_checkpointing import made
from tests.unit.models.test_forest import PAIRS, RANKINGS, STEPS, batches
from torch import nn

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import NumericalError, TunesmithError, UsageError
from tunesmith.models.checkpointing import checkpoint_layers
from tunesmith.models.config import LoraConfig
from tunesmith.models.policy import everywhere
from tunesmith.objectives import SFT
from tunesmith.recipe import load_recipe
from tunesmith.run import execute
from tunesmith.track.progress import make_progress
from tunesmith.track.run_dir import RunDir
from tunesmith.train import loop
from tunesmith.train.in_backward import BackwardOptimizer, make_optimizer
from tunesmith.train.optimizer import Optimizer
from tunesmith.train.optimizers import AdamW
from tunesmith.train.stability import Verdict
from tunesmith.train.start import check_start
from tunesmith.train.step import compute_step

SETTINGS = AdamW(lr=1e-2, weight_decay=0.1, in_backward=True)
KINDS = (PAIRS, RANKINGS, STEPS)


def microbatches(count):
    return [replace(batches(kind)[0], imitated=None) for kind in KINDS[:count]]


def optimizer_of(model, kind=BackwardOptimizer):
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return kind(trained, SETTINGS)


def one_step(model, optimizer, given, rate=0.5):
    optimizer.set_rate(rate)
    result = compute_step(model, given, (SFT(),), optimizer, Mesh())
    optimizer.step()
    optimizer.clear()
    return result


def assert_same(one, other):
    first, second = dict(one.named_parameters()), dict(other.named_parameters())
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("policy", ["off", "selective", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("adapter", [None, LoraConfig(rank=4)], ids=["full tuning", "lora"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_steps_equal_the_ordinary_ones(architecture, adapter, dtype, policy):
    """Three steps of one, two and three microbatches, at rates of their own; losses, norms, weights and states."""
    plain, model = (made(architecture, adapter, dtype) for _ in range(2))
    checkpoint_layers(model, everywhere(policy))
    ordinary, ours = optimizer_of(plain, Optimizer), optimizer_of(model)
    for count, rate in ((1, 0.5), (3, 1.0), (2, 0.1)):
        given = microbatches(count)
        wanted, found = one_step(plain, ordinary, given, rate), one_step(model, ours, given, rate)
        assert (found.loss, found.grad_norm) == (wanted.loss, wanted.grad_norm)
    assert_same(plain, model)
    one, other = ordinary.state(), ours.state()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_the_last_pass_does_not_reach_is_updated_all_the_same():
    def forked():
        torch.manual_seed(0)
        return nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)])

    plain, model = forked(), forked()
    ordinary, ours = optimizer_of(plain, Optimizer), optimizer_of(model)
    for fork, optimizer in ((plain, ordinary), (model, ours)):
        for way in (0, 1):
            optimizer.set_rate(1.0)
            fork[way](torch.ones(3)).pow(2).sum().backward()
            optimizer.complete(lambda: True)
            fork[1 - way](torch.ones(3)).pow(2).sum().backward()
            optimizer.finish(Mesh())
            optimizer.step()
            optimizer.clear()
    assert_same(plain, model)


def test_no_two_layers_have_gradients_at_once():
    model = made("llama", None)
    optimizer = optimizer_of(model)
    held = []

    def look(parameter):
        held.append(sum(each.grad.numel() for each in model.parameters() if each.grad is not None))

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(look)
    one_step(model, optimizer, microbatches(1))
    assert len(held) == len(list(model.parameters()))
    largest = max(parameter.numel() for parameter in model.parameters())
    assert max(held) <= largest < sum(parameter.numel() for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_state_of_either_kind_goes_on_with_the_other():
    steady, first, second = (made("llama", None, torch.bfloat16) for _ in range(3))
    optimizer, stopped = optimizer_of(steady, Optimizer), optimizer_of(first)
    for _ in range(4):
        one_step(steady, optimizer, microbatches(1))
    for _ in range(2):
        one_step(first, stopped, microbatches(1))
    second.load_state_dict(first.state_dict())
    resumed = optimizer_of(second)
    resumed.restore({name: tensor.clone() for name, tensor in stopped.state().items()})
    for _ in range(2):
        one_step(second, resumed, microbatches(1))
    assert_same(steady, second)


def test_a_loss_that_is_not_finite_touches_nothing():
    model = made("llama", None)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = optimizer_of(model)
    bad = replace(microbatches(1)[0], weight=microbatches(1)[0].weight * math.nan)
    result = one_step(model, optimizer, [*microbatches(1), bad])
    assert not result.is_finite
    assert not optimizer.has_updated
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert one_step(model, optimizer, microbatches(1)).is_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_leaves_its_own_parameter(dtype):
    torch.manual_seed(0)
    model = nn.ModuleDict({"good": nn.Linear(2, 2), "bad": nn.Linear(2, 2)}).to(dtype)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = optimizer_of(model)
    optimizer.set_rate(1.0)
    optimizer.complete(lambda: True)
    model["bad"].weight.register_hook(lambda gradient: gradient * math.inf)
    sum(layer(torch.ones(2, dtype=dtype)).float().pow(2).sum() for layer in model.values()).backward()
    assert not math.isfinite(optimizer.finish(Mesh()))
    assert optimizer.has_updated
    assert optimizer.nonfinite() == ["bad.weight"]
    after = dict(model.named_parameters())
    assert [name for name in before if torch.equal(before[name], after[name])] == ["bad.weight"]
    assert optimizer.state()["bad.weight.step"] == 0


def test_several_ranks_are_refused():
    with pytest.raises(UsageError) as caught:
        make_optimizer({}, SETTINGS, (), Mesh(0, 2))
    assert caught.value.diagnostic.code == "E189"
    assert type(make_optimizer(dict(nn.Linear(2, 2).named_parameters()), AdamW(), (), Mesh(0, 2))) is Optimizer


@pytest.mark.parametrize(
    ("words", "mended"),
    [([], {"train.clip_norm": 0.0}),
     (["train.clip_norm=0", "train.stability.on_spike=skip"], {"train.stability.on_spike": "off"})],
    ids=["clipping", "spikes"],
)  # fmt: skip
def test_what_needs_the_whole_gradient_is_refused(words, mended):
    with pytest.raises(TunesmithError) as caught:
        load_recipe(None, ["train.optimizer.in_backward=true", *words], {})
    assert caught.value.diagnostic.code == "E014"
    assert caught.value.diagnostic.fixes[0].set == mended
    fixed = [f"{key}={value}" for key, value in mended.items()]
    load_recipe(None, ["train.optimizer.in_backward=true", *words, *fixed], {})


@pytest.fixture
def start(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    model, data = tiny_model_folder(tmp_path / "model"), tmp_path / "data.jsonl"
    lines = [{"prompt": f"number {index}?", "completion": f"it is {index * 7}"} for index in range(12)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run_in(run: RunDir, *words: str) -> RunDir:
        settings = [f"model.path={model}", f"data.train={data}", "train.sequences_per_step=4", "model.adapter=full"]
        settings += ["train.steps=4", "train.optimizer.lr=1e-3", "train.checkpoint.every=2", "train.clip_norm=0"]
        recipe = load_recipe(None, [*settings, *words], {}).recipe
        with make_progress(quiet=True) as progress:
            execute(recipe, run, Mesh(), progress)
        return run

    return run_in


def weights_of(run):
    return load_file(run.path / "model" / "model.safetensors")


def test_runs_end_alike_and_go_on_as_if_they_had_not_stopped(start, tmp_path):
    inside = "train.optimizer.in_backward=true"
    plain = weights_of(start(RunDir.create(tmp_path / "runs", "plain")))
    run = start(RunDir.create(tmp_path / "runs", "inside"), inside)
    found = weights_of(run)
    assert all(torch.equal(plain[name], found[name]) for name in plain)
    shutil.rmtree(run.checkpoints / "step-4")
    again = weights_of(start(run, inside))
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_a_run_stops_at_a_gradient_that_is_not_finite(start, tmp_path, monkeypatch):
    def poison(parts, result):
        """From the second step on."""
        parameter = next(iter(parts.optimizer.parameters.values()))
        parameter.register_hook(lambda gradient: gradient * math.nan)
        check_start(parts, result)

    monkeypatch.setattr(loop, "check_start", poison)
    run = RunDir.create(tmp_path / "runs", "poisoned")
    with pytest.raises(NumericalError) as caught:
        start(run, "train.optimizer.in_backward=true", "train.checkpoint.every=1")
    assert caught.value.diagnostic.code == "E122"
    assert "step-1" in str(caught.value)
    evidence = json.loads((run.path / "bad_batches" / "step-2.json").read_text())
    assert len(evidence["parameters"]) == 1
    assert not (run.checkpoints / "step-2").exists()


def test_the_verdict_of_a_step_that_cannot_be_undone_is_to_stop():
    evidence = {"kind": "nonfinite", "step": 3, "skips_in_a_row": 1, "records": []}
    verdict = Verdict("skip", "the gradient norm is nan", evidence).too_late()
    assert verdict.action == "stop"
    assert verdict.error(None, 1e-3).diagnostic.code == "E122"
