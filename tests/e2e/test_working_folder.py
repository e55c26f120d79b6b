"""Z6, S5: a folder that somebody prepared is no place to import from, also when the command is called there."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tests.distributed.crew import surroundings

from tunesmith.recipe import to_yaml

NAMES = ("transformers", "torch", "numpy", "gguf", "tunesmith", "statistics", "json", "random", "sitecustomize", "pip")


@pytest.fixture
def trapped(tmp_path) -> tuple[Path, Path]:
    """A folder with a module for every name that a child may import first, and the canary that they make."""
    folder, canary = tmp_path / "downloads", tmp_path / "canary"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n")
    proof = subprocess.run([sys.executable, "-m", "statistics"], cwd=folder, check=False)
    assert canary.exists(), proof
    canary.unlink()
    return folder, canary


def call(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("tunesmith")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [str(program), *map(str, words)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.row("Z6", "S5")
def test_a_gguf_is_converted_by_our_own_modules(trapped):
    folder, canary = trapped
    (folder / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    done = call(folder, "chat", "m.gguf", "--prompt", "hi")
    assert done.returncode == 4, done.stderr
    assert "m.gguf" in done.stderr
    assert not canary.exists()


@pytest.mark.row("Z6", "S5")
def test_ranks_are_made_of_our_own_modules(trapped):
    folder, canary = trapped
    with surroundings(folder.parent) as made:
        recipe = folder / "recipe.yaml"
        recipe.write_text(to_yaml(made))
    done = call(folder, "train", recipe, "run.ranks=2", "train.steps=1", "run.name=one", "--yes")
    assert done.returncode == 0, done.stderr
    assert not canary.exists()
