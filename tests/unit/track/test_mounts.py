"""File systems: which one a folder is on, and whether checkpoints may be renamed there."""

from pathlib import Path

import pytest

from tunesmith.distributed.mesh import Mesh
from tunesmith.running.build import checkpoint_store, writers
from tunesmith.track import mounts
from tunesmith.train.config import CheckpointConfig

TOLD = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:40 / {0}/data rw,nosuid - fuse.gcsfuse bucket rw
31 22 0:41 / {0}/home\\040of\\040all rw - nfs4 server:/home rw,vers=4.2
32 22 0:42 / {0}/twice rw - nfs server:/a rw
33 32 0:43 / {0}/twice rw - xfs /dev/b rw
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mounts").write_text(TOLD.replace("\\\\", "\\").format(tmp_path))
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "mounts")
    return tmp_path


def test_a_folder_is_on_the_mount_that_is_nearest_to_it(folder: Path) -> None:
    found = {
        name: mounts.file_system(folder / name) for name in ("data/run", "home of all/x", "twice", "database", ".")
    }
    assert found == {
        "data/run": "fuse.gcsfuse",
        "home of all/x": "nfs4",
        "twice": "xfs",
        "database": "ext4",
        ".": "ext4",
    }


def test_a_link_is_on_the_file_system_that_it_leads_to(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "runs").symlink_to(folder / "data")
    assert mounts.file_system(folder / "runs" / "one") == "fuse.gcsfuse"


def test_where_nothing_is_told_folders_are_renamed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "MOUNTS", folder / "none")
    assert mounts.file_system(folder) is None
    assert mounts.renames_folders(folder)


@pytest.mark.parametrize(
    ("place", "commit", "in_place"),
    [
        ("data", "auto", True),
        ("home of all", "auto", True),
        ("twice", "auto", False),
        ("data", "rename", False),
        ("twice", "marker", True),
    ],
)
def test_checkpoints_are_committed_as_the_recipe_or_the_file_system_says(
    folder: Path, place: str, commit: str, in_place: bool
) -> None:
    settings = CheckpointConfig.model_validate({"commit": commit})
    store = checkpoint_store(folder / place / "checkpoints", settings, writers(Mesh()))
    path = store.save(1, {}, {})
    assert (path / ".in-place").exists() is in_place
    assert store.steps() == [1]
