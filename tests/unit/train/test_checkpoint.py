"""Checkpoints: exact round trips, damage found and named, fallback, retention, many writers."""

import errno
import json
import shutil
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tunesmith import faults
from tunesmith.errors import CheckpointError, MachineError
from tunesmith.train.checkpoint import CheckpointStore
from tunesmith.train.commit import Part, Writers
from tunesmith.train.durable import DTYPES

INTEGERS = [dtype for dtype in DTYPES if not dtype.is_floating_point and not dtype.is_complex]


def _tensors(step: int) -> dict:
    return {"model": {"weight": torch.full((3, 4), float(step)), "bias": torch.arange(4)}}


def _save(store: CheckpointStore, *steps: int, best: bool = False) -> None:
    for step in steps:
        own = Part({"torch": torch.get_rng_state()}, {"gauss": None})
        store.save(step, _tensors(step), {"step": step}, own=own, best=best, about={"tokens": 10 * step})


def _step_of(store: CheckpointStore) -> int:
    checkpoint = store.newest()
    assert checkpoint is not None
    assert checkpoint.state == {"step": checkpoint.step}
    assert torch.equal(checkpoint.tensors("model")["weight"], torch.full((3, 4), float(checkpoint.step)))
    return checkpoint.step


def _flip(path: Path, position: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 4
    path.write_bytes(content)


def _every_dtype() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {}
    for dtype in DTYPES:
        raw = torch.randint(0, 256, (6 * dtype.itemsize,), generator=generator, dtype=torch.uint8)
        made[str(dtype)] = (raw % 2).bool() if dtype is torch.bool else raw.view(dtype).reshape(2, 3)
    return made


def test_round_trip_is_bitwise_for_every_dtype(tmp_path):
    tensors = _every_dtype()
    tensors |= {
        "scalar": torch.tensor(1.5, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "strided": torch.arange(12.0).reshape(3, 4).t(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "special": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    store = CheckpointStore(tmp_path)
    store.save(1, {"model": tensors}, {"a": 0.1})
    loaded = store.newest()
    assert loaded.state == {"a": 0.1}
    found = loaded.tensors("model")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        want, got = (each.detach().contiguous().reshape(-1).view(torch.uint8) for each in (tensor, found[name]))
        assert torch.equal(got, want), name


def test_large_tensors_are_written_in_pieces(tmp_path):
    big = torch.arange(5_000_000, dtype=torch.float32)
    store = CheckpointStore(tmp_path)
    folder = store.save(1, {"model": {"big": big}}, {})
    assert torch.equal(safetensors.torch.load_file(folder / "model.safetensors")["big"], big)


def test_loaded_tensors_may_be_changed_without_touching_the_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path)
    _save(store, 1)
    store.newest().tensors("model")["weight"].add_(1)
    assert _step_of(store) == 1


def test_the_manifest_says_what_the_checkpoint_is(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(7, _tensors(7), {}, about={"examples": 3, "tokens": 70, "data": "abc", "config": "def"})
    manifest = json.loads((tmp_path / "step-7" / "manifest.json").read_text())
    want = {"format": 1, "step": 7, "examples": 3, "tokens": 70, "data": "abc", "config": "def", "world": {"ranks": 1}}
    assert want.items() <= manifest.items()
    assert manifest["versions"]["torch"] == torch.__version__
    here = {path.name for path in (tmp_path / "step-7").iterdir()}
    assert here == {*manifest["files"], "manifest.json"}
    assert (tmp_path / "latest").read_text() == "step-7\n"


def test_nothing_saved_is_none_and_an_unknown_stem_is_named(tmp_path):
    store = CheckpointStore(tmp_path / "none")
    assert (store.newest(), store.best(), store.clean()) == (None, None, [])
    _save(store, 1)
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors"):
        store.newest().tensors("optimizer")


def test_state_that_json_cannot_hold_is_our_bug_and_loud(tmp_path):
    with pytest.raises(ValueError):
        CheckpointStore(tmp_path).save(1, {}, {"best": float("inf")})


FILES = ["model.safetensors", "state.json", "rank0.json", "rank0.safetensors", "manifest.json"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete"])
@pytest.mark.parametrize("name", FILES)
def test_r06_damage_is_named_and_the_previous_checkpoint_is_used(tmp_path, name, damage):
    store = CheckpointStore(tmp_path)
    _save(store, 1, 2)
    path = tmp_path / "step-2" / name
    match damage:
        case "flip":
            _flip(path)
        case "truncate":
            path.write_bytes(path.read_bytes()[:-1])
        case "empty":
            path.write_bytes(b"")
        case "delete":
            path.unlink()
    assert _step_of(store) == 1
    (skipped,) = store.newest().skipped
    assert (skipped.code, skipped.level) == ("W110", "warning")
    assert name in skipped.message
    assert "step-2" in skipped.message


def test_r06_every_bit_flip_of_every_byte_is_found(tmp_path):
    store = CheckpointStore(tmp_path)
    _save(store, 1)
    for path in sorted((tmp_path / "step-1").iterdir()):
        original = path.read_bytes()
        for position in range(0, len(original), max(1, len(original) // 200)):
            _flip(path, position)
            with pytest.raises(CheckpointError, match=path.name):
                store.newest()
            path.write_bytes(original)
    assert _step_of(store) == 1


def test_r07_all_damaged_is_an_error_with_every_reason(tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    _save(store, 1, 2, 3)
    _flip(tmp_path / "step-1" / "model.safetensors")
    (tmp_path / "step-2" / "state.json").unlink()
    (tmp_path / "step-3" / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        store.newest()
    assert caught.value.exit_code == 4
    for part in (
        "step-1",
        "model.safetensors is damaged",
        "step-2",
        "state.json is missing",
        "step-3",
        "manifest.json",
    ):
        assert part in str(caught.value)
    assert len(caught.value.others) == 3


def test_r07_a_manifest_that_names_a_path_outside_is_refused(tmp_path):
    from tunesmith.train.manifest import read_manifest, seal

    store = CheckpointStore(tmp_path)
    _save(store, 1)
    folder = tmp_path / "step-1"
    manifest = read_manifest(folder)
    manifest["files"]["../secret"] = manifest["files"]["state.json"]
    (folder / "manifest.json").write_text(seal(manifest))
    with pytest.raises(CheckpointError, match="no plain file name"):
        store.at(1)


@pytest.mark.parametrize("content", [None, "step-99\n", "step-2\n", "\x00"])
def test_r08_latest_is_only_a_hint(tmp_path, content):
    store = CheckpointStore(tmp_path, keep=3)
    _save(store, 1, 2, 3)
    _flip(tmp_path / "step-2" / "model.safetensors")
    (tmp_path / "latest").unlink()
    if content is not None:
        (tmp_path / "latest").write_text(content)
    assert _step_of(store) == 3


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path):
    store = CheckpointStore(tmp_path)
    _save(store, 1, 2)
    _flip(tmp_path / "step-2" / "model.safetensors")
    _save(store, 2)
    assert _step_of(store) == 2
    assert store.newest().skipped == ()


def test_r16_a_valid_checkpoint_of_the_same_step_stays_and_may_become_the_best(tmp_path):
    store = CheckpointStore(tmp_path)
    _save(store, 1)
    before = (tmp_path / "step-1" / "model.safetensors").stat()
    _save(store, 1)
    assert store.best() is None
    _save(store, 1, best=True)
    assert store.best().step == 1
    assert (tmp_path / "step-1" / "model.safetensors").stat().st_ino == before.st_ino


def test_r18_best_and_newest_stay(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    _save(store, 1)
    _save(store, 2, best=True)
    _save(store, 3, 4, 5)
    assert (store.steps(), store.best().step) == ([5, 4, 2], 2)
    _save(store, 6, best=True)
    _save(store, 7, 8)
    assert (store.steps(), store.best().step) == ([8, 7, 6], 6)


def test_r18_never_fewer_than_two_valid(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    _save(store, 1, 2)
    _flip(tmp_path / "step-2" / "model.safetensors")
    _save(store, 3)
    assert store.steps() == [3, 2, 1]
    _save(store, 4)
    assert store.steps() == [4, 3]


def test_r18_a_damaged_best_does_not_push_out_the_older_best(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    _save(store, 1, 2, best=True)
    _flip(tmp_path / "step-2" / "model.safetensors")
    _save(store, 3, 4)
    assert (store.steps(), store.best().step) == ([4, 3, 1], 1)


@pytest.mark.row("R1", "R9")
def test_left_over_folders_are_removed_by_clean_only(tmp_path):
    store = CheckpointStore(tmp_path)
    _save(store, 1)
    (tmp_path / ".tmp-step-2-x").mkdir()
    (tmp_path / ".tmp-step-2-x" / "state.json").write_text("{")
    (tmp_path / ".tmp-latest-x").write_text("step")
    assert _step_of(store) == 1
    assert store.clean() == [".tmp-latest-x", ".tmp-step-2-x"]
    assert {path.name for path in tmp_path.iterdir()} == {"step-1", "latest"}


REFUSALS = ["ENOSPC", "EFBIG", "EROFS", "EIO", "EDQUOT", "EACCES"]


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize(
    "point",
    [
        "before_stage",
        "before_open@file=model.safetensors",
        "mid_write@file=model.safetensors",
        "before_fsync",
        "before_rename",
    ],
)
def test_r10_disk_errors_keep_the_old_and_leave_no_rest(tmp_path, point, name):
    store = CheckpointStore(tmp_path)
    _save(store, 1, 2)
    faults.arm(f"ckpt.{point}:errno:{name}".replace("before_stage", "before_stage@step=3"))
    with pytest.raises(MachineError) as caught:
        _save(store, 3)
    faults.arm("")
    assert caught.value.exit_code == 5
    assert caught.value.__cause__.errno == getattr(errno, name)
    for part in ("step 3: the checkpoint is not saved", "need ", "free ", " at /"):
        assert part in str(caught.value)
    assert "Errno" not in str(caught.value)
    moved = caught.value.diagnostic.fixes[-1].command or ""
    assert moved.endswith(f"/ && tunesmith runs resume OTHER_DISK/{tmp_path.parent.name}")
    assert store.steps() == [2, 1]
    assert not list(tmp_path.glob(".tmp-*"))
    _save(store, 3)
    assert _step_of(store) == 3


AFTER = {
    False: ("after_rename", "before_latest", "before_prune", "mid_prune", "mid_remove"),
    True: ("before_latest", "before_prune", "mid_prune", "after_set_aside"),
}


@pytest.mark.parametrize(("in_place", "point"), [(way, point) for way, points in AFTER.items() for point in points])
def test_r09_an_error_after_the_commit_says_that_the_checkpoint_is_complete(tmp_path, in_place, point):
    store = CheckpointStore(tmp_path, in_place=in_place)
    _save(store, 1, 2)
    faults.arm(f"ckpt.{point}@step=3:errno:EIO")
    with pytest.raises(MachineError, match="the checkpoint is saved, but afterwards"):
        _save(store, 3)
    faults.arm("")
    assert _step_of(store) == 3
    store.clean()
    _save(store, 4)
    assert store.steps() == [4, 3]


def test_r09_too_little_space_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.save(1, {"model": {"a": torch.zeros(1000)}}, {})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4500))
    with pytest.raises(MachineError, match="the disk is full") as caught:
        store.save(2, {"model": {"a": torch.zeros(1000)}}, {})
    assert "free 4.5 kB" in str(caught.value)
    assert not list(tmp_path.glob(".tmp-*"))


class _Meeting:
    """`agree` for threads that stand for ranks."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=20)
        self._votes: list[bool] = []

    def agree(self, ok: bool) -> bool:
        self._votes.append(ok)
        self._barrier.wait()
        agreed = all(self._votes)
        self._barrier.wait()
        self._votes.clear()
        self._barrier.wait()
        return agreed


def _as_ranks(folder: Path, size: int, step: int) -> list[Exception | None]:
    meeting = _Meeting(size)
    outcomes: list[Exception | None] = [None] * size

    def rank_body(rank: int) -> None:
        store = CheckpointStore(folder, writers=Writers(rank, size, meeting.agree, "same"))
        try:
            own = Part({"generator": torch.tensor([rank])}, {"rank": rank})
            store.save(step, _tensors(step) if rank == 0 else {}, {"step": step}, own=own)
        except MachineError as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=rank_body, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_every_rank_adds_its_part(tmp_path):
    assert _as_ranks(tmp_path, 3, 5) == [None] * 3
    checkpoint = CheckpointStore(tmp_path).newest()
    assert checkpoint.manifest["world"] == {"ranks": 3}
    for rank in range(3):
        part = checkpoint.part(rank)
        assert (part.state, part.tensors["generator"].item()) == ({"rank": rank}, rank)
    assert checkpoint.part(3) is None
    assert _as_ranks(tmp_path, 3, 5) == [None] * 3  # already there: all ranks leave it alone


@pytest.mark.parametrize("file", ["rank1.json", "model.safetensors"])
def test_x08_a_failure_on_one_rank_fails_the_save_on_all_without_a_hang(tmp_path, file):
    faults.arm(f"ckpt.mid_write@file={file}@hit=1:errno:ENOSPC")
    outcomes = _as_ranks(tmp_path, 2, 5)
    assert sorted(error.diagnostic.code for error in outcomes) == ["E112", "E114"]
    assert list(tmp_path.iterdir()) == []
