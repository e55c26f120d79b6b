"""Checkpoints where folders cannot be renamed in one act: written under their own names, the manifest last."""

import shutil
from pathlib import Path

import pytest
from tests.unit.train.test_checkpoint import _save, _step_of

from tunesmith import faults
from tunesmith.errors import MachineError
from tunesmith.train.checkpoint import CheckpointStore

REFUSED_IN_PLACE = (
    "before_open@file=model.safetensors",
    "mid_write@file=model.safetensors",
    "before_manifest",
    "before_fsync@file=manifest.json",
    "before_folder_fsync",
)


@pytest.mark.row("R10")
@pytest.mark.parametrize("point", REFUSED_IN_PLACE)
def test_a_refused_save_in_place_leaves_nothing_of_it(tmp_path, point):
    store = CheckpointStore(tmp_path, in_place=True)
    _save(store, 1, 2)
    faults.arm(f"ckpt.{point}@step=3:errno:EIO")
    with pytest.raises(MachineError, match="step 3: the checkpoint is not saved"):
        _save(store, 3)
    faults.arm("")
    assert store.steps() == [2, 1]
    assert not (tmp_path / "step-3").exists()
    _save(store, 3)
    assert _step_of(store) == 3


@pytest.mark.row("R9")
def test_what_stands_in_the_way_stays_where_nothing_was_begun(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, in_place=True)
    _save(store, 1, 2, 3)
    (tmp_path / "step-3" / "state.json").write_text("{")  # damaged: a save of step 3 would replace it
    before = {path.name: path.read_bytes() for path in (tmp_path / "step-3").iterdir()}
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
        with pytest.raises(MachineError, match="the disk is full"):
            _save(store, 3)
    assert {path.name: path.read_bytes() for path in (tmp_path / "step-3").iterdir()} == before
    _save(store, 3)
    assert _step_of(store) == 3


@pytest.mark.row("R1", "R9")
def test_a_save_in_place_without_its_manifest_is_no_checkpoint_and_goes_with_clean(tmp_path):
    store = CheckpointStore(tmp_path, in_place=True)
    _save(store, 1, 2)
    shutil.copytree(tmp_path / "step-2", tmp_path / "step-3")
    (tmp_path / "step-3" / "manifest.json").unlink()
    for reader in (store, CheckpointStore(tmp_path)):  # however the reader would write
        assert reader.steps() == [2, 1]
        assert (_step_of(reader), reader.newest().skipped) == (2, ())
    assert store.clean() == ["step-3"]
    (tmp_path / "step-2" / "manifest.json").write_text("{")
    assert store.steps() == [2, 1]  # with a manifest it is one, and a damaged one is told
    assert "W110" in str(store.newest().skipped)


@pytest.mark.row("R1")
def test_no_folder_is_renamed_where_checkpoints_are_written_in_place(tmp_path, monkeypatch):
    _save(CheckpointStore(tmp_path), 1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: pytest.fail("a folder was renamed"))
        store = CheckpointStore(tmp_path, in_place=True)
        (tmp_path / "step-2").mkdir()  # a damaged checkpoint in the way
        (tmp_path / "step-2" / "state.json").write_text("{")
        _save(store, 2, 3)
        _save(store, 3, best=True)
        _save(store, 4)
    assert (store.steps(), store.best().step) == ([4, 3], 3)
    _save(CheckpointStore(tmp_path), 5)
    assert CheckpointStore(tmp_path).steps() == [5, 4, 3]
