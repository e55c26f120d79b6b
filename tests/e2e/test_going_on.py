"""R6, R14: what a run that goes on tells, and what an update of Tunesmith changes in its settings."""

import hashlib
import json
import shutil

import pytest
from tests.command import call

from tunesmith import faults
from tunesmith.errors import CheckpointError
from tunesmith.recipe import load_recipe
from tunesmith.track.index import summarise
from tunesmith.track.reader import read_lines
from tunesmith.track.run_dir import RunDir
from tunesmith.train.manifest import read_manifest, seal

pytestmark = pytest.mark.timeout(600)


def test_r06_a_damaged_checkpoint_is_told_on_the_screen_and_in_the_log(train, tmp_path, capsys):
    with pytest.raises(faults.InjectedFault):
        train("run", "train.step@step=5:raise")
    run = tmp_path / "run"
    file = run / "checkpoints" / "step-4" / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    capsys.readouterr()
    train("run")
    shown = capsys.readouterr().err
    for told in (shown, (run / "log.txt").read_text()):
        assert "W110" in told
        assert "checkpoint step-4 is skipped" in told
        assert "optimizer.safetensors" in told
        assert "going on from step 2" in told


def test_r07_a_resume_that_fails_shows_the_last_step(train, tmp_path):
    with pytest.raises(faults.InjectedFault):
        train("run", "train.step@step=5:raise")
    run = tmp_path / "run"
    assert summarise(RunDir(run)).step == 4
    for folder in (run / "checkpoints").glob("step-*"):
        (folder / "state.json").unlink()
    with pytest.raises(CheckpointError, match="E110"):
        train("run")
    found = summarise(RunDir(run))
    assert (found.state, found.step, found.attempt) == ("failed", 4, 2)


def edited(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def as_begun_by_another_version(run, change):
    """Change what `run.json` and every checkpoint say that the run was begun with."""
    edited(run / "run.json", lambda content: change(content["identity"]))
    for folder in (run / "checkpoints").glob("step-*"):
        edited(folder / "state.json", lambda content: change(content["about"]))
        manifest = read_manifest(folder)
        file = folder / "state.json"
        content = file.read_bytes()
        manifest["files"]["state.json"] |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (folder / "manifest.json").write_text(seal(manifest))


def stopped(train, tmp_path, **changes):
    with pytest.raises(faults.InjectedFault):
        train("run", "train.step@step=5:raise", **changes)
    return tmp_path / "run"


@pytest.mark.parametrize("at", ["checkpoint", "start"])
def test_r14_settings_that_came_later_count_as_their_defaults(train, tmp_path, at):
    run = stopped(train, tmp_path)
    as_begun_by_another_version(run, lambda old: [old.pop(key) for key in list(old) if key in YOUNG])
    if at == "start":
        shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match=r"train\.deterministic: False -> True"):
        train("run", train__deterministic=True)
    train("run")
    assert summarise(RunDir(run)).state == "finished"


YOUNG = ("train.deterministic", "train.stability.diverged_steps", "online", "objective.coefficient", "tokenizer hash")


def test_r14_a_setting_that_went_is_told_unless_it_had_its_default(train, tmp_path):
    run = stopped(train, tmp_path)
    as_begun_by_another_version(run, lambda old: old.update({"train.lost": 3, "train.unused": True, "model.a.b": 1}))
    edited(run / "run.json", lambda content: content["at_default"].append("train.unused"))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("\ntrain:\n", "\ntrain:\n  lost: 3\n  unused: true\n", 1))
    loaded = load_recipe(config, (), {})
    assert [each.evidence for each in loaded.warnings if each.code == "W553"] == [("train.lost: 3",)]
    train("run")
    (told,) = [row for row in read_lines(run / "events.jsonl") if row.get("code") == "W553"]
    assert told["evidence"] == ["model.a.b: 1", "train.lost: 3"]
    assert "train.lost: 3" in (run / "log.txt").read_text()


@pytest.mark.row("R2", "K7")
def test_the_same_command_after_a_crash_names_the_resume_before_it_plans(train, inputs, tmp_path, capsys, monkeypatch):
    words = ["train", "sft", f"model.path={inputs}/model", f"data.train={inputs}/sequence.jsonl", "run.name=run"]
    run = stopped(train, tmp_path)
    edited(run / "status.json", lambda status: status.update(state="running", pid=2**22 - 1))  # as kill -9 leaves it
    before = sorted(path.name for path in run.iterdir())
    capsys.readouterr()
    assert call(*words, f"run.folder={tmp_path}") == 2
    shown = capsys.readouterr()
    assert "E190" in shown.err
    assert "a run that is not finished (lost, step 4)" in " ".join(shown.err.split())
    assert f"fix: tunesmith runs resume {run}" in " ".join(shown.err.split())
    assert "memory" not in shown.out
    assert sorted(path.name for path in run.iterdir()) == before
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    run.rename(tmp_path / "runs" / "run")
    assert call(*words) == 2
    assert "fix: tunesmith runs resume run\n" in capsys.readouterr().err


@pytest.mark.row("K7")
def test_a_finished_run_is_not_offered_to_be_resumed_and_a_file_is_refused(train, inputs, tmp_path, capsys):
    words = ["train", "sft", f"model.path={inputs}/model", f"data.train={inputs}/sequence.jsonl"]
    train("run", train__steps=1)
    capsys.readouterr()
    assert call(*words, f"run.folder={tmp_path}", "run.name=run") == 2
    shown = capsys.readouterr().err
    assert "already holds a finished run" in " ".join(shown.split())
    assert "runs resume" not in shown
    (tmp_path / "file").write_text("mine")
    assert call(*words, f"run.folder={tmp_path}", "run.name=file") == 2
    assert "E019" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
