"""What the plan says of cached states of frozen layers: sizes, time, and when they cannot be or are of no use."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tests.records import write_records
from tests.tiny import tiny_model_folder

from tunesmith.cli.plan_view import plan_view
from tunesmith.data.prepared import prepare
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.plan import Plan, make_plan
from tunesmith.planning import trunk
from tunesmith.planning.machine import Machine
from tunesmith.recipe import load_recipe

MACHINE = Machine("cpu", "a processor", 4, 2, 16 * 10**9, 12 * 10**9)
LORA = ("model.adapter.last=1", "train.epochs=4")


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"), num_hidden_layers=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_records(tmp_path_factory.mktemp("data") / "chats.jsonl", "sequence", 60)


def planned(model: Path, data: Path, *overrides: str, where: str = "disk", machine: Machine = MACHINE) -> Plan:
    words = [f"model.path={model}", f"data.train={data}", f"train.cache_trunk={where}", *overrides]
    return make_plan(load_recipe(None, words, {}).recipe, machine=machine)


def found(plan: Plan, code: str) -> bool:
    return code in [problem.code for problem in plan.problems]


def test_sizes_are_those_of_the_prepared_data(model, data):
    plan = planned(model, data, *LORA)
    settings = plan.recipe.data
    prepared = prepare(settings.train, settings, load_tokenizer(model))
    assert plan.trunk is not None
    assert plan.trunk.layers == 3
    assert plan.trunk.tokens == pytest.approx(prepared.lengths.sum())
    assert plan.trunk.bytes == pytest.approx(4 * 64 * prepared.lengths.sum())  # fp32, hidden size 64


def test_a_source_that_is_read_twice_is_kept_once(model, data):
    once = planned(model, data, *LORA)
    twice = planned(model, data, *LORA, "data.train.0.weight=2")
    assert once.trunk is not None
    assert twice.trunk is not None
    assert twice.trunk.bytes == once.trunk.bytes
    assert twice.steps.all_tokens == pytest.approx(2 * once.steps.all_tokens)


def test_steps_are_planned_without_the_frozen_layers(model, data):
    plain, cached = planned(model, data, *LORA, where="off"), planned(model, data, *LORA)
    assert cached.trunk is not None
    assert cached.flops == pytest.approx(plain.flops - cached.trunk.flops)
    assert cached.seconds + cached.trunk_saving == pytest.approx(plain.seconds)
    assert cached.trunk_seconds == pytest.approx(cached.trunk_saving / 4)  # four epochs save what one pass costs
    content = json.loads(json.dumps(cached.to_json()))["trunk"]
    assert content["layers"] == 3
    assert content["bytes"] == cached.trunk.bytes


def test_memory_counts_the_states_and_disk_does_not(model, data):
    settings = [*LORA, "train.activation_checkpointing=off"]
    disk, memory = (planned(model, data, *settings, where=where) for where in ("disk", "memory"))
    assert memory.trunk is not None
    assert memory.memory.trunk == memory.trunk.bytes
    assert memory.memory.peak == disk.memory.peak + memory.trunk.bytes
    tight = replace(MACHINE, memory_free=int(disk.memory.peak / 0.9) + 1000)
    refused = planned(model, data, *settings, where="memory", machine=tight)
    problem = next(problem for problem in refused.problems if problem.code == "E180")
    assert problem.fixes[0].set == {"train.cache_trunk": "disk"}


def test_a_disk_without_room_is_refused(model, data, monkeypatch):
    def small(folder: Path):
        return shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)  # pyright: ignore[reportAttributeAccessIssue]

    monkeypatch.setattr(trunk.shutil, "disk_usage", small)
    assert found(planned(model, data, *LORA), "E198")
    assert not found(planned(model, data, *LORA, where="memory"), "E198")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ((), "trained"),
        (("model.adapter.targets=[q_proj]",), "trained"),
        (("model.adapter.method=full", "train.optimizer.lr=1e-5"), "trained"),
        (("model.adapter.method=freeze", "model.adapter.first=1"), "trained"),
        (("model.adapter.method=freeze", "model.adapter.last=1", "model.adapter.names=[layers.0.mlp]"), "trained"),
        ((*LORA, "model.adapter.modules_to_save=[embed_tokens]"), "trained"),
        ((*LORA, "train.neftune_alpha=5"), "noise"),
    ],
)
def test_what_cannot_be_exact_is_refused_with_a_way_out(model, data, settings, word):
    plan = planned(model, data, "train.epochs=4", *settings)
    (problem,) = [problem for problem in plan.problems if problem.code == "E197"]
    assert word in problem.message
    assert plan.trunk is None
    for fix in problem.fixes:
        changes = fix.label.split()  # as one would type it
        mended = planned(model, data, "train.epochs=4", *settings, *changes, where=fix.set.get(trunk.FIELD, "disk"))
        assert not found(mended, "E197"), fix


def test_a_model_that_drops_states_is_refused_unless_dropout_is_silenced(data, tmp_path):
    noisy = tiny_model_folder(tmp_path / "noisy", num_hidden_layers=4, attention_dropout=0.1)
    assert found(planned(noisy, data, *LORA), "E197")
    pairs = write_records(tmp_path / "pairs.jsonl", "pair", 60)
    assert not found(planned(noisy, pairs, *LORA, "objective=dpo"), "E197")


def test_an_architecture_that_is_not_proven_is_refused(data, tmp_path):
    other = tiny_model_folder(tmp_path / "other", "starcoder2", num_hidden_layers=4)
    assert found(planned(other, data, *LORA), "E197")


def test_one_epoch_is_a_warning(model, data):
    assert found(planned(model, data, "model.adapter.last=1"), "W197")
    assert found(planned(model, data, "model.adapter.last=1", "train.steps=3"), "W197")
    assert not found(planned(model, data, "model.adapter.last=1", "train.epochs=2"), "W197")


def test_the_view_says_what_is_kept_and_saved(model, data):
    console = Console(width=160, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(plan_view(planned(model, data, *LORA)))
    assert "the 3 lowest of 4 layers once" in captured.get()
    assert "on disk" in captured.get()
