"""`tunesmith doctor --chaos`: a tiny training, generated here, is broken on purpose, and must come out the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith import faults
from tunesmith.errors import CheckpointError
from tunesmith.models.tiny import write_tiny_model
from tunesmith.track.reader import read_lines, read_metrics
from tunesmith.train.checkpoint import CheckpointStore

RECORDS = 24
CORRUPTIONS = 200
STEPS = 8
KILLS = (
    "train.step@step=4:kill",
    "ckpt.mid_write@step=4@hit=3:kill",
    "ckpt.before_rename@step=6:kill",
    "ckpt.mid_prune:kill",
)
WORDS = ("river", "stone", "cloud", "lamp", "garden", "letter", "window", "winter")


@dataclass(frozen=True, slots=True)
class Trial:
    """One thing that was broken: how, what came of it, and whether that is what was promised."""

    fault: str
    found: str
    held: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def torture(folder: Path) -> Iterator[Trial]:
    """Every trial in turn, in an empty folder; each proves that its fault took place."""
    prepare(folder)
    code = train(folder, "whole")
    if code != 0:
        yield Trial("nothing", f"the training fails by itself: {told(folder, 'whole')}", held=False)
        return
    trials: tuple[Callable[[Path], Trial], ...] = (kills, corruptions, full_disk, little_memory, not_a_number)
    for trial in trials:
        yield trial(folder)


def kills(folder: Path) -> Trial:
    """SIGKILL in a step, in a write, before a rename and while pruning, in one run."""
    codes = [train(folder, "killed", armed) for armed in KILLS]
    killed = sum(code == -signal.SIGKILL for code in codes)
    code = train(folder, "killed")
    same = code == 0 and result(folder / "killed") == result(folder / "whole")
    found = f"{killed} of {len(KILLS)} killed; resumed, {'equal to the bit' if same else 'not equal'}"
    return Trial("kill -9 in a step, a write, a rename, a removal", found, killed == len(KILLS) and same)


def corruptions(folder: Path) -> Trial:
    """One bit of the newest checkpoint at a time; then the run must fall back to the one before."""
    store, dice = CheckpointStore(folder / "killed" / "checkpoints"), random.Random(0)
    newest, older = store.steps()[:2]
    found = 0
    for _ in range(CORRUPTIONS):
        path = dice.choice(sorted((store.folder / f"step-{newest}").glob("[!.]*")))
        content = path.read_bytes()
        place = dice.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << dice.randrange(8)]) + content[place + 1 :])
        try:
            store.at(newest)
        except CheckpointError as error:
            found += path.name in str(error)
        opened = store.newest()
        found -= opened is None or opened.step != older
        path.write_bytes(content)
    opened = store.newest()
    whole = opened is not None and opened.step == newest and not opened.skipped
    resumed = goes_back(folder, store.folder / f"step-{newest}", older)
    words = f"{found} of {CORRUPTIONS} found, named, and the one before taken; {'no' if whole else 'a'} false alarm"
    said = "the run falls back to it, equal to the bit" if resumed else "the run does not fall back to it"
    return Trial("one bit of a checkpoint changed", f"{words}; {said}", found == CORRUPTIONS and whole and resumed)


def goes_back(folder: Path, newest: Path, older: int) -> bool:
    """Whether the run itself, its newest checkpoint changed, says so, goes on from the one before and ends the same."""
    path = newest / "optimizer.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    if train(folder, "killed") != 0:
        return False
    words = told(folder, "killed", length=None)
    said = "W110" in words and path.name in words and f"going on from step {older}" in words
    return said and result(folder / "killed") == result(folder / "whole")


def full_disk(folder: Path) -> Trial:
    code = train(folder, "full", "ckpt.mid_write@step=4:errno:ENOSPC")
    kept = CheckpointStore(folder / "full" / "checkpoints").steps()
    again = train(folder, "full")
    same = again == 0 and result(folder / "full") == result(folder / "whole")
    found = (
        f"exit code {code}, step {kept[0] if kept else 0} kept; resumed, {'equal to the bit' if same else 'not equal'}"
    )
    return Trial("disk full while writing", found, code == 5 and kept == [2] and same)


def little_memory(folder: Path) -> Trial:
    code = train(folder, "memory", "train.backward@above=160:memory")
    halved = events(folder / "memory", "out_of_memory")
    if code != 0 or not halved:
        return Trial("out of memory in a step", f"exit code {code}, {len(halved)} times halved", held=False)
    pairs = list(zip(losses(folder / "memory"), losses(folder / "whole"), strict=True))
    apart = max(abs(one - other) / abs(other) for one, other in pairs)
    size = halved[-1]["microbatch_tokens"]
    return Trial("out of memory in a step", f"microbatches of {size} tokens, losses {apart:.0e} apart", apart <= 1e-6)


def not_a_number(folder: Path) -> Trial:
    code = train(folder, "nan", "train.loss@step=3:become:nan")
    bad = events(folder / "nan", "bad_step")
    kept = bad_records(folder / "nan", 3)
    held = code == 0 and [row["action"] for row in bad] == ["skip"] and kept > 0
    return Trial("NaN in a loss", f"exit code {code}, {len(bad)} step left out, {kept} records in bad_batches", held)


def bad_records(run: Path, step: int) -> int:
    """How many records of the step are kept as evidence."""
    file = run / "bad_batches" / f"step-{step}.json"
    return len(json.loads(file.read_text(encoding="utf-8"))["records"]) if file.is_file() else 0


def prepare(folder: Path) -> None:
    """A model of a few thousand weights and records of different lengths."""
    write_tiny_model(folder / "model")
    dice = random.Random(0)
    with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(RECORDS):
            words = [" ".join(dice.choices(WORDS, k=dice.randint(2, 12))) for _ in range(2)]
            file.write(json.dumps({"prompt": words[0], "completion": words[1]}) + "\n")


def train(folder: Path, name: str, armed: str = "") -> int:
    """Train in a process of its own with faults armed, or go on there; its exit code, negative for a signal."""
    settings = {
        "model.path": folder / "model",
        "data.train": folder / "records.jsonl",
        "run.folder": folder,
        "run.name": name,
        "model.adapter.rank": 2,
        "train.steps": STEPS,
        "train.sequences_per_step": 6,
        "train.microbatch_tokens": 400,
        "train.checkpoint.every": 2,
        "train.threads": 1,
    }
    begun = (folder / name / "run.json").exists()
    words = (
        ["runs", "resume", str(folder / name)]
        if begun
        else ["train", "sft", *(f"{k}={v}" for k, v in settings.items())]
    )
    environment = {**os.environ, faults.VARIABLE: armed, "TUNESMITH_KERNELS": "off", "OMP_NUM_THREADS": "1"}
    log = (folder / f"{name}.log").open("w")
    with log:
        command = [sys.executable, "-P", "-m", "tunesmith", *words]
        return subprocess.run(command, env=environment, stdout=log, stderr=log, cwd=folder, check=False).returncode


def told(folder: Path, name: str, length: int | None = 300) -> str:
    """The end of what the process printed."""
    words = " ".join((folder / f"{name}.log").read_text(encoding="utf-8").split())
    return words if length is None else words[-length:]


def result(run: Path) -> tuple[list[float], dict[str, str]]:
    """Losses, and the hashes of the tensors in the last checkpoint."""
    newest = CheckpointStore(run / "checkpoints").newest()
    files = {} if newest is None else newest.manifest["files"]
    return losses(run), {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}


def losses(run: Path) -> list[float]:
    return [row["train/loss"] for row in read_metrics(run / "metrics.jsonl") if "train/loss" in row]


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_lines(run / "events.jsonl") if row["event"] == kind]
