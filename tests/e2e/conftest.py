"""Trainings in this process, with faults armed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tests.e2e.attempts import make_inputs, tiny_recipe

from tunesmith import faults
from tunesmith.distributed.mesh import Mesh
from tunesmith.run import execute
from tunesmith.track.progress import make_progress
from tunesmith.track.run_dir import RunDir

PLAIN = {"model.adapter.dropout": 0.0, "train.evaluate_every": 0, "data.eval": []}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Iterator[Path]:
    folder, before = tmp_path_factory.mktemp("inputs"), torch.get_num_threads()
    make_inputs(folder)
    yield folder
    torch.set_num_threads(before)


@pytest.fixture
def train(inputs, tmp_path) -> Callable[..., Path]:
    """Train in a folder of this name with faults armed, and lines on stderr; a folder that is there goes on."""

    def run(name: str, armed: str = "", **changes: object) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        with armed_with(armed), make_progress() as display:
            execute(tiny_recipe(inputs, changes={**PLAIN, **named(changes)}), RunDir(folder), Mesh(), display)
        return folder

    return run


def named(changes: dict[str, object]) -> dict[str, object]:
    """`train__steps` as the key `train.steps`."""
    return {key.replace("__", "."): value for key, value in changes.items()}


@contextmanager
def armed_with(text: str) -> Iterator[None]:
    faults.arm(text)
    try:
        yield
    finally:
        faults.arm("")
