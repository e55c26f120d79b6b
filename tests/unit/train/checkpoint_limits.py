"""Meet a real limit of the machine while saving. Usage: python checkpoint_limits.py FOLDER full_disk|file_size.

Exit code 77: the limit cannot be set here, the reason is on stderr.
"""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import torch

from tunesmith.errors import MachineError
from tunesmith.train.checkpoint import CheckpointStore

MEGABYTE = 1_000_000


def save(store: CheckpointStore, step: int, words: int = 0) -> None:
    store.save(
        step, {"model": {"weight": torch.full((MEGABYTE // 4,), float(step))}}, {"step": step, "words": "x" * words}
    )


def refused(store: CheckpointStore, step: int, number: int, words: int = 0) -> str:
    """Saving must fail by this errno, leave no rest and all older checkpoints; returns the message."""
    before = store.steps()
    error = failure(store, step, words)
    assert isinstance(error.__cause__, OSError)
    assert (error.__cause__.errno, error.exit_code) == (number, 5), error
    assert f"at {mount_of(store.folder)}" in str(error), error
    assert store.steps() == before
    assert store.newest().step == before[0]
    assert not list(store.folder.glob(".tmp-*"))
    return str(error)


def failure(store: CheckpointStore, step: int, words: int) -> MachineError:
    try:
        save(store, step, words)
    except MachineError as error:
        return error
    raise AssertionError("the limit was not met")


def mount_of(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.is_mount())


def full_disk(folder: Path) -> None:
    """A tmpfs of 4 MB that another program fills: seen before the first write, or in the middle of one."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode != 0:
        skip(f"no tmpfs here: {done.stderr.strip()}")
    store = CheckpointStore(folder / "checkpoints")
    save(store, 1)
    other = folder / "other"
    other.write_bytes(bytes(2 * MEGABYTE))
    assert "file:" in refused(store, 2, errno.ENOSPC)
    os.truncate(other, MEGABYTE)
    assert "state.json" in refused(store, 2, errno.ENOSPC, words=2 * MEGABYTE)  # a state larger than anyone expected
    other.unlink()
    save(store, 2)
    assert store.newest().step == 2


def file_size(folder: Path) -> None:
    """RLIMIT_FSIZE below the size of the tensors: EFBIG in the middle of a file, some bytes already written."""
    store = CheckpointStore(folder / "checkpoints")
    save(store, 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEGABYTE // 2, resource.RLIM_INFINITY))
    refused(store, 2, errno.EFBIG)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    save(store, 2)
    assert store.newest().step == 2


def skip(reason: str) -> None:
    print(reason, file=sys.stderr)
    sys.exit(77)


if __name__ == "__main__":
    {"full_disk": full_disk, "file_size": file_size}[sys.argv[2]](Path(sys.argv[1]))
