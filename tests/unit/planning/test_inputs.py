"""What is looked for first: missing data is told before minutes are spent on the model."""

import json

import pytest
from tests.tiny import tiny_model_folder

from tunesmith.cli.main import run
from tunesmith.cli.output import fetching
from tunesmith.errors import DataError, ModelError
from tunesmith.models import starter
from tunesmith.planning.inputs import find_inputs
from tunesmith.recipe import load_recipe


def refuse_to_fetch(*_):
    pytest.fail("the starter model was asked for")


@pytest.fixture
def no_starter(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(starter, "fetch", refuse_to_fetch)
    (tmp_path / "chats.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')


@pytest.mark.parametrize("field", ["data.train", "data.eval", "evaluate.data"])
def test_missing_data_is_refused_before_the_model_is_fetched(no_starter, field):
    recipe = load_recipe("sft", ["data.train=chats.jsonl", f"{field}=nothing.jsonl"]).recipe
    with pytest.raises(DataError) as caught:
        find_inputs(recipe)
    assert caught.value.diagnostic.code == "E041"


@pytest.mark.parametrize("words", [["train"], ["plan"], ["data", "check"]], ids=" ".join)
def test_every_command_refuses_it_at_once(no_starter, capsys, words):
    with pytest.raises(SystemExit) as caught:
        run([*words, "sft", "data.train=nothing.jsonl"])
    assert caught.value.code == DataError.exit_code
    assert "nothing.jsonl" in capsys.readouterr().err


def test_fetching_is_told_from_its_first_word_and_nothing_otherwise(capsys):
    with fetching():
        pass
    assert capsys.readouterr().err == ""
    with fetching() as progress:
        progress("fetch", 0.25)
        assert "model, fetch, percent 25/100" in capsys.readouterr().err


def test_f07_an_architecture_that_nobody_knows_is_told_by_the_plan(no_starter, tmp_path, capsys):
    folder = tiny_model_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "lama"}))
    with pytest.raises(SystemExit) as caught:
        run(["plan", "sft", "data.train=chats.jsonl", f"model.path={folder}"])
    assert "error[E510]: the installed transformers knows no models of the type lama" in capsys.readouterr().err
    assert caught.value.code == ModelError.exit_code
