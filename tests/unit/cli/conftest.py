"""Models to talk to, and the lines that are said to them."""

import io
import sys

import pytest
from tests.tiny import tiny_model_folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[str, str]:
    """Two models whose names nobody could overlook."""
    place = tmp_path_factory.mktemp("models")
    settings = {"tie_word_embeddings": False, "initializer_range": 0.2}
    names = ("alpha-model", "beta-model")
    made = [tiny_model_folder(place / name, seed=at, **settings) for at, name in enumerate(names)]
    return str(made[0]), str(made[1])


@pytest.fixture
def typed(monkeypatch, tmp_path):
    """Sets the lines of stdin; the command runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *lines: monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
