import json
import os
import subprocess
import sys

import pytest

from tunesmith.errors import MachineError
from tunesmith.models import cache


def make(folder, content="hello"):
    with cache.staged(folder) as stage:
        (stage / "config.json").write_text(content)
    return folder


def test_a_staged_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(FileNotFoundError), cache.staged(folder) as stage:
        (stage / "half").with_suffix(".x").joinpath("y").write_text("x")
    assert list(tmp_path.iterdir()) == []
    assert cache.is_intact(make(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_without_manifest_is_never_trusted(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert not cache.is_intact(tmp_path)


def test_a_changed_size_is_noticed(tmp_path):
    folder = make(tmp_path / "model")
    (folder / "config.json").write_text("hello!")
    assert not cache.is_intact(folder)


def test_a_missing_file_is_noticed(tmp_path):
    folder = make(tmp_path / "model")
    (folder / "config.json").unlink()
    assert not cache.is_intact(folder)


def test_another_time_alone_is_settled_by_the_hash_once(tmp_path):
    folder = make(tmp_path / "model")
    os.utime(folder / "config.json", (1, 1))
    assert cache.is_intact(folder)
    recorded = json.loads((folder / cache.MANIFEST).read_text())["files"]["config.json"]
    assert recorded["mtime_ns"] == 10**9


def test_f03_a_flipped_bit_with_a_new_time_is_noticed(tmp_path):
    folder = make(tmp_path / "model")
    (folder / "config.json").write_text("hellp")
    os.utime(folder / "config.json", (1, 1))
    assert not cache.is_intact(folder)
    assert cache.damaged_files(folder) == ["config.json"]


def test_a_replaced_folder_leaves_nothing_of_the_old_one(tmp_path):
    folder = make(tmp_path / "model")
    (folder / "old").write_text("x")
    make(folder, "new")
    assert not (folder / "old").exists()
    assert (folder / "config.json").read_text() == "new"


def test_left_overs_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".model-abc").mkdir()
    (tmp_path / ".other-abc").mkdir()
    cache.remove_left_overs(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == [".other-abc"]


def test_the_lock_keeps_a_second_process_waiting(tmp_path):
    lock = tmp_path / "lock"
    code = (
        "import sys; from pathlib import Path; from tunesmith.models.cache import locked\n"
        "def show(phase, share): print(phase, flush=True)\n"
        "with locked(Path(sys.argv[1]), show): print('inside', flush=True)\n"
    )
    with cache.locked(lock):
        process = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "waiting for another process\n"
        assert process.poll() is None
    assert process.communicate(timeout=60)[0] == "inside\n"


def test_a_home_that_cannot_be_written_is_a_machine_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="E173"):
        cache.make_folder(tmp_path / "file" / "folder")


def test_too_little_space_says_both_numbers(tmp_path):
    with pytest.raises(MachineError, match=r"needs 1000000000\.0 GB on disk, .* free"):
        cache.require_space(tmp_path, 10**18, "this")


def test_a_remembered_digest_follows_the_content(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    path = tmp_path / "big"
    path.write_bytes(b"1")
    first = cache.remembered_digest(path)
    assert cache.remembered_digest(path) == first == cache.digest(path)
    path.write_bytes(b"22")
    assert cache.remembered_digest(path) == cache.digest(path) != first
