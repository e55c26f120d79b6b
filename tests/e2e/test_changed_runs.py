"""R14, R15: what a resume finds changed is refused by name, or told where the numbers may go on."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith import faults
from tunesmith.errors import CheckpointError
from tunesmith.track.reader import read_lines
from tunesmith.train.manifest import code_hash, read_manifest, seal

pytestmark = pytest.mark.timeout(600)


def test_r14_another_recipe_is_refused_with_the_difference(train):
    with pytest.raises(faults.InjectedFault):
        train("run", "train.step@step=5:raise")
    with pytest.raises(CheckpointError) as caught:
        train("run", train__clip_norm=0.5, model__adapter__alpha=7)
    assert caught.value.exit_code == 4
    assert "train.clip_norm: 1.0 -> 0.5" in str(caught.value)
    assert "model.adapter.alpha" in str(caught.value)
    train("run", train__checkpoint__keep=5)  # what changes no number may be changed


@pytest.mark.parametrize(
    ("changed", "differ"),
    [("tokenizer", ["base hash", "data hash", "tokenizer hash"]), ("weights", ["base hash"]), ("data", ["data hash"])],
    ids=["tokenizer", "weights", "data"],
)
def test_r14_other_inputs_are_refused_by_name(train, inputs, tmp_path, changed, differ):
    model, data = tmp_path / "model", tmp_path / "data.jsonl"
    shutil.copytree(inputs / "model", model)
    shutil.copy(inputs / "sequence.jsonl", data)
    settings = {"model__path": model, "data__train": data}
    with pytest.raises(faults.InjectedFault):
        train("run", "train.step@step=3:raise", **settings)
    if changed == "tokenizer":
        content = json.loads((model / "tokenizer.json").read_text())
        content["model"]["merges"].pop()
        (model / "tokenizer.json").write_text(json.dumps(content))
    elif changed == "weights":
        tensors = load_file(model / "model.safetensors")
        tensors["model.norm.weight"][0] += 1
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    else:
        data.write_text(data.read_text().replace("please", "no"))
    with pytest.raises(CheckpointError) as caught:
        train("run", **settings)
    assert caught.value.diagnostic.code == "E116"
    assert sorted(line.partition(":")[0] for line in caught.value.diagnostic.evidence) == differ


@pytest.mark.row("R14")
@pytest.mark.parametrize("name", ["torch", "code"])
def test_r15_a_checkpoint_of_other_versions_loads_with_the_promise_withdrawn(train, tmp_path, name, evidence):
    with pytest.raises(faults.InjectedFault):
        train("run", "train.step@step=5:raise")
    folder, shown = tmp_path / "run" / "checkpoints" / "step-4", {"torch": torch.__version__, "code": code_hash()}[name]
    manifest = read_manifest(folder)
    assert manifest["versions"][name] == shown
    manifest["versions"][name] = "2.11.0"
    (folder / "manifest.json").write_text(seal(manifest))
    run = train("run")
    told = [row["message"] for row in read_lines(run / "events.jsonl") if row.get("code") == "W465"]
    assert len(told) == 1
    assert f"{name} 2.11.0 -> {shown}" in told[0]
    assert "need not equal" in told[0]
    assert told[0] in (run / "log.txt").read_text()
    claim = f"a checkpoint by another version of {name} goes on, the promise of equal bits withdrawn"
    evidence("R15", claim=claim, figure="1 of 1")
