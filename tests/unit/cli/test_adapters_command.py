"""`tunesmith adapters` as a user meets it."""

import json
from pathlib import Path

import pytest
import torch
from tests.command import call
from tests.tiny import tiny_model_folder

from tunesmith.cli import adapters as command
from tunesmith.export import adapters as work
from tunesmith.models.adapters import attach, combining, save_adapter, trainable
from tunesmith.models.config import LoraConfig, ModelConfig
from tunesmith.models.load import DTYPES, load_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base model and two adapters, a and b."""
    place = tmp_path_factory.mktemp("adapters")
    base = tiny_model_folder(place / "base", initializer_range=0.2)
    for seed, name in enumerate("ab"):
        model = attach(load_base(base, ModelConfig(path=str(base))), LoraConfig(rank=4, alpha=4))
        torch.manual_seed(seed)
        for parameter in trainable(model).values():
            parameter.data += 0.05 * torch.randn_like(parameter)
        save_adapter(model, place / name, str(base))
    return place


def test_words_of_options_are_those_of_the_work():
    assert (combining.RULES, work.FORMS, tuple(DTYPES)) == (command.RULES, command.FORMS, command.DTYPES)


def test_ls_tells_of_one_of_many_and_whether_they_fit(folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert call("adapters", "ls", str(folder), "--model", str(folder / "base")) == 0
    text = capsys.readouterr().out
    assert [line.split()[0].rpartition("/")[2] for line in text.splitlines()] == ["adapter", "a", "b"]
    assert "yes" in text
    assert call("adapters", "ls", str(folder / "a"), str(folder / "b"), "--json") == 0
    told = json.loads(capsys.readouterr().out)["adapters"]
    assert [facts["method"] for facts in told] == ["lora", "lora"]
    assert call("adapters", "ls", str(folder / "nothing")) == 4
    assert "E093" in capsys.readouterr().err


def test_add_and_what_it_tells(folder: Path, tmp_path: Path, capsys) -> None:
    names = [str(folder / "a"), str(folder / "b")]
    assert call("adapters", "add", *names, "--weights", "0.7 0.3", "--out", str(tmp_path / "sum"), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["method"], told["ranks"], round(told["kept"], 6)) == ("linear", [8, 8], 1.0)
    words = ["--method", "ties", "--density", "0.3", "--rank", "4", "-o", str(tmp_path / "ties")]
    assert call("adapters", "add", *names, *words) == 0
    text = capsys.readouterr().out
    assert "rank 4" in text
    assert "of the update is kept" in text
    assert call("adapters", "add", *names, "--weights", "1,x", "-o", str(tmp_path / "no")) == 2
    assert "--weights 0.7,0.3" in capsys.readouterr().err
    assert call("adapters", "add", *names, "--method", "tie", "-o", str(tmp_path / "no")) == 2
    assert "did you mean ties?" in capsys.readouterr().err


def test_convert_and_what_it_tells(folder: Path, tmp_path: Path, capsys) -> None:
    assert call("adapters", "convert", str(folder / "a"), str(tmp_path / "rs"), "--to", "rslora") == 0
    assert "the whole update is kept" in capsys.readouterr().out
    assert call("adapters", "convert", str(folder / "a"), str(tmp_path / "small"), "--rank", "2", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ranks"] == [2, 2]
    assert 0 < told["error"] < 1
    assert call("adapters", "convert", str(folder / "a"), str(tmp_path / "no"), "--to", "oft") == 2
    assert "E367" in capsys.readouterr().err
