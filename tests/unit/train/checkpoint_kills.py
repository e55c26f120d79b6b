"""Kill a process at every failpoint of a save and see what is left; torch is imported once, every case is a fork.

Usage: python checkpoint_kills.py FOLDER KILLS_PER_POINT rename|marker. Prints one JSON object per case.
"""

import json
import os
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

import torch

from tunesmith import faults
from tunesmith.errors import CheckpointError
from tunesmith.train.checkpoint import CheckpointStore
from tunesmith.train.commit import Part, Writers, is_unfinished

LAST = 5
BEST = (2, 3)
FILE_POINTS = ("ckpt.before_open", "ckpt.mid_write", "ckpt.before_fsync", "ckpt.after_fsync")


def scenario(folder: Path, in_place: bool, last: int = LAST) -> None:
    """A run of saves that passes every failpoint: left-overs to clean, a damaged folder in the way, a best to mark."""
    store = CheckpointStore(folder, keep=2, writers=Writers(token="t"), in_place=in_place)
    (folder / ".tmp-left-over").mkdir(parents=True, exist_ok=True)
    store.clean()
    newest = _newest(store)
    for step in range(newest.step if newest else 1, last + 1):
        (folder / f"step-{step}").mkdir(exist_ok=True)  # a damaged checkpoint of this step
        own = Part({"generator": torch.tensor([step])}, {"step": step})
        store.save(step, {"model": {"weight": torch.full((8,), float(step))}}, {"step": step}, own=own)
        if step in BEST:
            store.save(step, {}, {}, best=True)


def _newest(store: CheckpointStore):
    """The newest valid one; the folder that the scenario puts in the way of step 1 counts as nothing saved."""
    try:
        return store.newest()
    except CheckpointError:
        assert store.steps() == [1]
        return None


def in_child(work) -> int:
    """Run `work` in a fork and return the wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def all_points(folder: Path, in_place: bool) -> dict[tuple[str, str], int]:
    """How often the unkilled scenario passes every failpoint, told apart by the file where there is one."""
    trace = folder / "trace"

    def work() -> None:
        faults.arm(f"*:trace:{trace}")
        scenario(folder / "all", in_place)

    assert in_child(work) == 0
    seen = Counter()
    for line in trace.read_text().splitlines():
        point, _, name = line.split()
        seen[point, name if point in FILE_POINTS else ""] += 1
    return seen


def last_committed(passed: list[list[str]], in_place: bool) -> int:
    """The last step whose folder got its own name, or, in place, whose manifest was whole: it is written in halves."""
    if not in_place:
        return max((int(step) for point, step, _ in passed if point == "ckpt.after_rename"), default=0)
    halves = Counter(int(step) for point, step, name in passed if (point, name) == ("ckpt.mid_write", "manifest.json"))
    return max((step for step, count in halves.items() if count >= 2), default=0)


def case(folder: Path, in_place: bool, point: str, name: str, hit: int) -> dict:
    """Kill at the given passing of a point; then check what a fresh process finds, and let it finish."""
    trace = folder.with_suffix(".trace")
    condition = f"@file={name}" if name else ""

    def killed() -> None:
        faults.arm(f"*:trace:{trace}; {point}{condition}@hit={hit}:kill")
        scenario(folder, in_place)

    status = in_child(killed)
    problems = []
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
        problems.append(f"not killed: status {status}")
    passed = [line.split() for line in trace.read_text().splitlines()]
    committed = last_committed(passed, in_place)
    best = max((int(step) for name, step, _ in passed if name == "ckpt.after_mark_best"), default=0)
    problems += _problems(folder, committed, best)
    if in_child(lambda: scenario(folder, in_place)) != 0:
        problems.append("could not go on")
    problems += _problems(folder, LAST, max(BEST))
    problems += [f"left over: {path.name}" for path in folder.glob(".tmp-*")]
    problems += [f"left unfinished: {path.name}" for path in folder.glob("step-*") if is_unfinished(path)]
    shutil.rmtree(folder)
    trace.unlink()
    return {"point": point, "file": name, "hit": hit, "committed": committed, "problems": problems}


def _problems(folder: Path, want: int, want_best: int) -> list[str]:
    store = CheckpointStore(folder)
    newest = _newest(store)
    if newest is None:
        return [] if want == 0 else [f"nothing valid, want step {want}"]
    problems = []
    if newest.step != want:
        problems.append(f"newest valid is {newest.step}, want {want}")
    if newest.state != {"step": newest.step} or newest.part(0).state != {"step": newest.step}:
        problems.append("wrong state")
    if not torch.equal(newest.tensors("model")["weight"], torch.full((8,), float(newest.step))):
        problems.append("wrong weights")
    valid = [step for step in store.steps() if store._valid(step)]
    if len(valid) < min(2, want):
        problems.append(f"only {valid} are valid")
    best = store.best()
    if (best.step if best else 0) < want_best:
        problems.append(f"the best, step {want_best}, is lost")
    return problems


def main(folder: Path, kills: int, in_place: bool) -> None:
    torch.set_num_threads(1)
    for (point, name), times in all_points(folder, in_place).items():
        for hit in sorted({max(1, times * kill // kills) for kill in range(1, kills + 1)}):
            print(json.dumps(case(folder / "case", in_place, point, name, hit)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "marker")
