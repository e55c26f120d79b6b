"""What a command advises can be typed at it."""

import json

import pytest
from tests.hostile import tunesmith
from tests.tiny import tiny_model_folder

from tunesmith.cli.advice import NO_RECIPE
from tunesmith.cli.main import PANELS


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("base") / "model")


@pytest.mark.row("D1")
@pytest.mark.parametrize("as_json", [False, True])
def test_a_broken_line_is_told_without_a_setting_that_eval_has_not(model, tmp_path, as_json):
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", \n')
    done = tunesmith("eval", model, "--data", data, *(["--json"] if as_json else []))
    assert done.code == 4
    assert "E030" in done.text
    assert "on_bad" not in done.text
    assert "take such records out of the file" in done.text
    if as_json:
        assert json.loads(done.text)["error"]["fixes"][-1]["set"] == {}
    trained = tunesmith("plan", "sft", f"model.path={model}", f"data.train={data}")
    assert "data.on_bad=skip" in trained.text


def test_every_command_without_a_recipe_is_one():
    assert {command for commands in PANELS.values() for command in commands} >= NO_RECIPE


def test_serve_refuses_weights_of_a_plain_folder_before_it_loads(model, monkeypatch):
    def never(*words: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("tunesmith.serve.house.House.__init__", never)
    done = tunesmith("serve", f"m={model}", "--port", "0", "--weights", "best")
    assert done.code == 2
    assert "error[E020]: --weights chooses among those of a run, and m is none" in done.text
    assert "leave --weights out" in done.text
