"""AdaLoRA against its formulas, against PEFT's own allocation, and as runs leave it."""

import json

import peft
import pytest
import torch
from peft.tuners.adalora.layer import RankAllocator
from safetensors.torch import load_file
from tests.unit.models.architectures import build
from tests.unit.models.test_adapter_laws import attached, disturbed, logprobs
from tests.unit.running.test_adapter_runs import METHODS, contents, rows, start  # noqa: F401

from tunesmith.errors import UsageError
from tunesmith.export.opening import open_model
from tunesmith.models.adalora_config import AdaloraConfig
from tunesmith.models.adapters import attach, load_adapter, save_adapter, trainable
from tunesmith.models.inventory import take_inventory
from tunesmith.models.inventory import trainable as planned
from tunesmith.planning.guards import copies_bytes
from tunesmith.recipe import load_recipe
from tunesmith.recipe.adalora_checks import without_room
from tunesmith.train.adalora import Adalora
from tunesmith.train.optimizer import Optimizer
from tunesmith.train.optimizers import AdamW
from tunesmith.train.step import StepResult

SETTINGS = AdaloraConfig(rank=2, start=2, tinit=2, tfinal=3, every=2)
RESULT = StepResult(1.0, (1.0,), 1.0, 0.0, {})


def begun(model, settings=SETTINGS, total=12):
    tuning = Adalora(settings, total)
    return tuning, tuning.start(trainable(model), lambda chosen: Optimizer(chosen, AdamW(lr=1e-2)))


def test_the_rule_of_orthogonality_is_that_of_the_paper():
    model = disturbed(SETTINGS)
    tuning, optimizer = begun(model)
    found = tuning.weigh(RESULT, optimizer)
    gradients = {name: each.grad.clone() for name, each in trainable(model).items()}
    total = 0
    for name, parameter in trainable(model).items():
        parameter.grad = None
        if "lora_A" in name:
            total += (parameter @ parameter.T - torch.eye(4)).square().sum()
        elif "lora_B" in name:
            total += (parameter.T @ parameter - torch.eye(4)).square().sum()
    (SETTINGS.orthogonality * total).backward()
    assert found.metrics == {"orthogonality": pytest.approx(total.item(), rel=1e-5), "rank": 4}
    wanted = [torch.zeros_like(each) if each.grad is None else each.grad for each in trainable(model).values()]
    for name, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradients[name], want, atol=1e-4, rtol=1e-5)
    assert found.grad_norm == pytest.approx(torch.nn.utils.get_total_norm(wanted).item(), rel=1e-5)


def test_ranks_are_cut_as_peft_cuts_them():
    model = disturbed(SETTINGS)
    tuning, _ = begun(model)
    theirs = build("qwen2")
    before, last_cut = SETTINGS.phases(12)
    config = peft.AdaLoraConfig(
        init_r=4, target_r=2, tinit=before, tfinal=12 - last_cut, total_step=12, deltaT=2, target_modules="all-linear"
    )
    theirs = peft.get_peft_model(theirs, config)
    allocator = theirs.base_model.rankallocator
    assert isinstance(allocator, RankAllocator)
    other = {name: each for name, each in theirs.named_parameters() if name in trainable(model)}
    assert other.keys() == trainable(model).keys()
    chance = torch.Generator().manual_seed(3)
    counts = []
    for step in range(1, 13):
        for name, parameter in trainable(model).items():
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=chance))
            parameter.grad = torch.randn(parameter.shape, generator=chance)
            other[name].data.copy_(parameter.data)
            other[name].grad = parameter.grad.clone()
        tuning.after(step, None)
        theirs.base_model.update_and_allocate(step)
        assert [name for name in other if not torch.equal(other[name], trainable(model)[name])] == []
        counts.append(sum(int(mask.sum()) for mask in tuning.kept.values()))
    layers = len(tuning.kept)
    assert counts[:3] == [4 * layers] * 3
    assert counts[-4:] == [2 * layers] * 4
    assert counts == sorted(counts, reverse=True)
    assert config.rank_pattern == {
        name.removeprefix("base_model.model."): mask.tolist() for name, mask in tuning.kept.items()
    }


def test_a_skipped_step_does_not_leave_the_last_cut_out():
    model = disturbed(SETTINGS)
    tuning, optimizer = begun(model)
    optimizer.gradients()
    tuning.after(10, optimizer)
    assert sum(int(mask.sum()) for mask in tuning.kept.values()) == 2 * len(tuning.kept)
    assert tuning.means == {}


@pytest.mark.parametrize("words", [METHODS["adalora"], METHODS["adalora until the end"]])
def test_what_was_cut_is_not_in_the_folder_and_peft_predicts_the_same(start, words, tmp_path):  # noqa: F811
    run = start("run", *words)
    folder = run.path / "adapter"
    settings = json.loads((folder / "adapter_config.json").read_text())
    held = load_file(folder / "adapter_model.safetensors")
    ranks = [len(tensor) for name, tensor in held.items() if name.endswith("lora_E")]
    assert sum(ranks) == settings["target_r"] * len(ranks)
    assert [sum(mask) for mask in settings["rank_pattern"].values()] == ranks
    assert (settings["total_step"], settings["init_r"]) == (6, 4)
    base = open_model(str(tmp_path / "model")).model
    want = logprobs(open_model(str(run.path), which="newest").model)
    theirs = peft.PeftModel.from_pretrained(open_model(str(tmp_path / "model")).model, str(folder))
    torch.testing.assert_close(logprobs(theirs), want, atol=2e-5, rtol=2e-5)
    ours = load_adapter(base.requires_grad_(False), folder, AdaloraConfig())
    torch.testing.assert_close(logprobs(ours), want, atol=2e-5, rtol=2e-5)
    assert rows(run)[6]["train/rank"] <= 4
    assert rows(run)[6]["train/orthogonality"] < rows(run)[1]["train/orthogonality"]
    counted = planned(take_inventory(tmp_path / "model"), AdaloraConfig(), folder).total
    assert counted == sum(map(torch.numel, held.values()))


def test_what_was_cut_before_can_be_cut_again(tmp_path):
    model = disturbed(SETTINGS)
    tuning, optimizer = begun(model)
    optimizer.gradients()
    tuning.after(10, optimizer)
    save_adapter(model, tmp_path / "once", "base")
    again = load_adapter(build("qwen2").bfloat16().requires_grad_(False), tmp_path / "once", SETTINGS).float()
    assert {each.dtype for each in trainable(again).values()} == {torch.float32}
    second, optimizer = begun(again, AdaloraConfig(rank=1, tinit=0, tfinal=0))
    assert second.first == 2 * len(second.kept)
    optimizer.gradients()
    second.after(12, optimizer)
    save_adapter(again, tmp_path / "twice", "base")
    theirs = peft.PeftModel.from_pretrained(build("qwen2").bfloat16().float(), str(tmp_path / "twice"))
    torch.testing.assert_close(logprobs(theirs), logprobs(again), atol=2e-5, rtol=2e-5)


def test_means_are_planned_and_in_the_checkpoint(start, tmp_path):  # noqa: F811
    run = start("run", *METHODS["adalora"])
    early, late = contents(run, 3), contents(run)
    means = [name for name in early if name.endswith((".importance", ".uncertainty"))]
    assert not any(name in late for name in means)
    recipe = load_recipe(None, METHODS["adalora"], {}).recipe
    inventory = take_inventory(tmp_path / "model")
    trained = planned(inventory, recipe.model.adapter)
    assert sum(early[name].nbytes for name in means) == copies_bytes(recipe, inventory, trained, 4, 0)


@pytest.mark.parametrize("words", [["train.optimizer.in_backward=true"], ["train.optimizer=schedule_free"]])
def test_what_keeps_gradients_or_cuts_away_is_refused(words):
    words = ["model.adapter=adalora", "train.schedule=constant", "train.clip_norm=0", *words]
    with pytest.raises(UsageError, match="E354") as caught:
        load_recipe(None, words, {})
    fixed = [f"{key}={value}" for key, value in caught.value.diagnostic.fixes[0].set.items()]
    load_recipe(None, [*words, *fixed], {})


@pytest.mark.parametrize("total", [1, 3, 4, 100])
def test_a_run_without_room_is_refused_with_shares_that_leave_some(total):
    problem = without_room(AdaloraConfig(tinit=60, tfinal=40), total)
    assert problem.code == "E355"
    fixed = {key.rpartition(".")[2]: value for key, value in problem.fixes[0].set.items()}
    assert without_room(AdaloraConfig(**fixed), total) is None
    assert without_room(AdaloraConfig(tinit=60, tfinal=39), 100) is None


def test_dropout_falls_on_the_input_alone():
    model = attached(AdaloraConfig(rank=2, dropout=0.5))
    assert torch.equal(logprobs(model.train()), logprobs(model.eval()))
    model = attach(build("qwen2").requires_grad_(False), AdaloraConfig(rank=2, dropout=0.5))
    for parameter in trainable(model).values():
        parameter.data.add_(0.2)
    assert not torch.equal(logprobs(model.train()), logprobs(model.eval()))
