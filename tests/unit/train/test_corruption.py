"""A thousand corruptions of a checkpoint are found, and a thousand looks at a good one raise no alarm."""

import random
import shutil
from pathlib import Path

import pytest
import torch

from tunesmith.errors import CheckpointError
from tunesmith.train.checkpoint import CheckpointStore
from tunesmith.train.commit import Part

TIMES = 1000


def saved(folder: Path) -> CheckpointStore:
    store = CheckpointStore(folder)
    weights = {"weight": torch.arange(64.0), "bias": torch.zeros(3, dtype=torch.bfloat16)}
    store.save(1, {"weights": weights, "optimizer": weights}, {"step": 1}, own=Part({"g": torch.ones(9)}, {"r": 1}))
    return store


def corrupt(path: Path, dice: random.Random) -> None:
    """Flip a bit, cut the end off, add a byte, or swap two bytes that differ."""
    content = bytearray(path.read_bytes())
    place = dice.randrange(len(content))
    match dice.choice(["flip", "flip", "cut", "add", "zero"]):
        case "flip":
            content[place] ^= 1 << dice.randrange(8)
        case "cut":
            del content[place:]
        case "add":
            content.insert(place, dice.randrange(256))
        case "zero":
            content[place] = 0 if content[place] else 255
    assert content != path.read_bytes(), "nothing was corrupted"
    path.write_bytes(content)


@pytest.mark.row("R6")
def test_a_thousand_corruptions_are_found_without_a_false_alarm(tmp_path, evidence):
    store, dice = saved(tmp_path / "checkpoints"), random.Random(0)
    folder, good = tmp_path / "checkpoints" / "step-1", tmp_path / "good"
    shutil.copytree(folder, good)
    names = sorted(path.name for path in good.iterdir())
    assert len(names) == 6
    found = alarms = 0
    for _ in range(TIMES):
        alarms += store.at(1).step != 1
        name = dice.choice(names)
        corrupt(folder / name, dice)
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            store.at(1)
        found += 1
        shutil.copy(good / name, folder / name)
    assert (found, alarms) == (TIMES, 0)
    evidence(
        "R6",
        claim="corrupted checkpoints found and named",
        figure=f"{found:,} of {TIMES:,}, {alarms} false alarms in {TIMES:,} looks at good ones",
        seed=0,
    )
