"""`train.profile`: the same run to the bit, and where its time went."""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import tiny_model_folder
from tests.unit.test_run import losses, rows, start, write_data

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import Preempted
from tunesmith.faults import InjectedFault, arm
from tunesmith.recipe import load_recipe
from tunesmith.run import execute
from tunesmith.track import clock
from tunesmith.track.profile import PARTS
from tunesmith.track.progress import NoProgress
from tunesmith.track.run_dir import RunDir


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


def profile_of(run: RunDir) -> dict:
    return json.loads(run.profile_file.read_text())


def seconds_of(profile: dict) -> dict[tuple[str, str], float]:
    return {(row["phase"], row["part"]): row["seconds"] for row in profile["parts"]}


@pytest.mark.parametrize("adapter", ["model.adapter.dropout=0.1", "model.adapter=lora", "model.adapter=full"])
def test_a_profiled_run_is_the_same_to_the_bit(model, tmp_path, adapter):
    data = write_data(tmp_path / "d.jsonl")
    settings = ["train.steps=5", adapter, "train.neftune_alpha=5"]
    plain, timed = (start(model, data, *settings, f"train.profile={each}")[0] for each in ("false", "true"))
    assert losses(plain) == losses(timed)
    (one,) = (
        (plain.path / "adapter").glob("*.safetensors") if "full" not in adapter else plain.path.glob("model/*.saf*")
    )
    other = load_file(timed.path / one.relative_to(plain.path))
    assert all(torch.equal(tensor, other[name]) for name, tensor in load_file(one).items())
    assert not plain.profile_file.exists()
    assert profile_of(timed)["steps"] == 2
    assert clock.RUNNING == []


def test_the_parts_add_up_to_the_whole_and_none_is_forgotten(model, tmp_path):
    data, held_out = write_data(tmp_path / "d.jsonl"), write_data(tmp_path / "e.jsonl", 3)
    settings = ["train.steps=9", "train.profile=true", "train.evaluate_every=2", f"data.eval={held_out}"]
    run, _ = start(model, data, *settings, "model.adapter=full")
    profile, timed = profile_of(run), rows(run.metrics_file)
    found = seconds_of(profile)
    assert profile["steps"] == 6
    assert sum(found.values()) == pytest.approx(profile["seconds"])
    assert sum(row["share"] for row in profile["parts"]) == pytest.approx(1)
    steps = [row for row in timed if row.get("perf/step_s") and row["step"] > 3]
    assert profile["step_seconds"] == pytest.approx(sum(row["perf/step_s"] for row in steps))
    assert profile["tokens"] == sum(row["train/tokens_per_step"] for row in steps)
    assert 0 < profile["mfu"] < 1
    assert profile["floor_seconds"] > 0
    assert 0 < profile["floor_cpu_share"] < 1
    assert profile["seconds"] > profile["step_seconds"]
    everywhere = set(PARTS) - {"", "embedding"}
    for phase in ("forward", "backward"):
        assert everywhere <= {part for name, part in found if name == phase}, phase
    assert found["forward", "embedding"] > 0
    for name in ("waiting for data", "batch to device", "clip", "optimizer", "checkpoint", "evaluation", "other"):
        assert found[name, ""] > 0, name


def test_layers_as_transformers_wrote_them_are_told_by_part_as_well(tmp_path):
    run, _ = start(
        tiny_model_folder(tmp_path / "model", "gemma2"),
        write_data(tmp_path / "d.jsonl"),
        "train.steps=5",
        "train.profile=true",
    )
    found = seconds_of(profile_of(run))
    assert set(PARTS) - {""} <= {part for phase, part in found if phase == "forward"}
    assert {"qkv", "out", "gate and up", "down"} <= {part for phase, part in found if phase == "backward"}


@pytest.mark.parametrize("policy", ["full", "selective"])
def test_recomputing_that_breaks_off_in_the_middle_of_a_module_leaves_no_part_open(tmp_path, monkeypatch, policy):
    clocks: list[clock.Clock] = []
    started = clock.Clock.start
    monkeypatch.setattr(clock.Clock, "start", lambda self: (clocks.append(self), started(self)))
    settings = ["train.steps=5", "train.profile=true", f"train.activation_checkpointing={policy}"]
    start(tiny_model_folder(tmp_path / "model", "gemma2"), write_data(tmp_path / "d.jsonl"), *settings)
    assert [each.stack for each in clocks] == [[("other", "")]]


def test_the_table_can_be_read(model, tmp_path):
    # steps enough for every part to take a millisecond: what takes less is not shown
    run, _ = start(model, write_data(tmp_path / "d.jsonl"), "train.steps=63", "train.profile=true")
    lines = run.profile_text.read_text().splitlines()
    assert lines[0].startswith("60 steps after 3 to warm up")
    assert "of the steps' time" in lines[2]
    assert all(len(line) <= 100 for line in lines)
    table = {line[:34].strip(): line[34:].split() for line in lines[5:]}
    assert table["all"][2] == "100.0%"
    assert {"forward", "backward", "qkv", "optimizer"} < table.keys()


def test_what_is_known_is_written_when_a_run_fails(model, tmp_path):
    arm("train.step@step=6:raise")
    run = RunDir.create(tmp_path / "runs", "bad")
    with pytest.raises(InjectedFault):
        start(model, write_data(tmp_path / "d.jsonl"), "train.steps=9", "train.profile=true", run=run)
    arm("")
    assert profile_of(run)["steps"] == len(losses(run)) - 3 == 2
    assert clock.RUNNING == []


class Impatient(NoProgress):
    """Asks the run to stop after its fifth step."""

    def step(self, step: int, total: int, values: Mapping[str, float]) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)


def test_what_is_known_is_written_when_a_signal_stops_a_run(model, tmp_path):
    words = [f"model.path={model}", f"data.train={write_data(tmp_path / 'd.jsonl')}", "train.sequences_per_step=4"]
    recipe = load_recipe(None, [*words, "train.steps=9", "train.profile=true"], {}).recipe
    run = RunDir.create(tmp_path / "runs")
    with pytest.raises(Preempted):
        execute(recipe, run, Mesh(), Impatient())
    profile = profile_of(run)
    assert profile["steps"] == 2
    assert seconds_of(profile)["checkpoint", ""] > 0


def test_a_run_that_is_all_warm_up_says_so(model, tmp_path):
    run, _ = start(model, write_data(tmp_path / "d.jsonl"), "train.steps=2", "train.profile=true")
    assert profile_of(run)["steps"] == 0
    assert run.profile_text.read_text() == "No step was timed: the first 3 of an attempt warm up.\n"


def test_a_resume_may_begin_to_profile(model, tmp_path):
    data = write_data(tmp_path / "d.jsonl")
    run, _ = start(model, data, "train.steps=2")
    start(model, data, "train.steps=2", "train.profile=true", run=run)
    assert profile_of(run)["attempt"] == 2


def test_every_row_tells_utilisation_and_scored_tokens(model, tmp_path):
    run, _ = start(model, write_data(tmp_path / "d.jsonl"), "train.steps=3")
    for row in rows(run.metrics_file):
        if "train/loss" in row:
            assert 0 < row["perf/mfu"] < 1
            assert row["perf/scored_tok_s"] == pytest.approx(row["train/scored_per_step"] / row["perf/step_s"])
    assert "MFU" in run.log_file.read_text()
