"""`sample` as a user meets it."""

import json
from pathlib import Path

import pytest
from tests.command import call
from tests.tiny import tiny_model_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"), tie_word_embeddings=False, initializer_range=0.2)


@pytest.fixture
def asked(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("Hello\nName a sea.\n", "utf-8")
    return ["--prompts", "prompts.txt", "-n", "3", "--max-new-tokens", "6", "--temperature", "1"]


def test_sample_writes_answers_and_their_settings_and_continues(folder, asked, capsys):
    assert call("sample", str(folder), *asked, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {key: told[key] for key in ("out", "prompts", "completions", "new")} == {
        "out": f"prompts.{folder.name}.answers.jsonl", "prompts": 2, "completions": 6, "new": 6,
    }  # fmt: skip
    assert told.keys() >= {"tokens_per_second", "finished", "mean_length", "distinct"}
    rows = [json.loads(line) for line in Path(told["out"]).read_text("utf-8").splitlines()]
    assert [row["prompt"][0]["content"] for row in rows] == ["Hello", "Name a sea."]
    side = json.loads(Path(told["out"] + ".settings.json").read_text("utf-8"))
    assert (side["temperature"], side["answers"], side["seed"]) == (1.0, 3, 0)
    assert side["weights"].keys() == {"base"}
    assert call("sample", str(folder), *asked, "--json") == 0
    assert json.loads(capsys.readouterr().out)["new"] == 0
    assert call("sample", str(folder), *asked) == 0
    assert "6 answers to 2 prompts" in capsys.readouterr().out


def test_products_are_chosen_and_refused_where_there_are_none(folder, asked, capsys):
    assert call("sample", str(folder), *asked, "--products", "shared") == 0
    assert call("sample", str(folder), *asked, "--json") == 0  # the same answers, so that the file is whole
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["new"] == 0
    assert call("sample", str(folder), *asked, "--products", "int8", "-o", "other.jsonl") == 4
    assert "E428" in capsys.readouterr().err  # the model is in fp32
    assert call("eval", str(folder), "--data", "prompts.txt", "--products", "eight") == 2
    assert "--products" in capsys.readouterr().err


def test_sample_refuses_to_mix_settings(folder, asked, capsys):
    assert call("sample", str(folder), *asked) == 0
    assert call("sample", str(folder), *asked, "--seed", "5") == 2
    assert "E260" in capsys.readouterr().err
    assert call("sample", str(folder), *asked, "--seed", "5", "-o", "other.jsonl") == 0
    assert Path("other.jsonl").exists()


def test_sample_names_a_missing_file(folder, capsys):
    assert call("sample", str(folder), "--prompts", "nowhere.jsonl") == 4
    assert "nowhere.jsonl" in capsys.readouterr().err


def test_answers_of_two_models_do_not_share_a_file(folder, asked, tmp_path, capsys):
    other = tiny_model_folder(tmp_path / "other model", seed=1)
    assert call("sample", str(folder), *asked) == 0
    assert call("sample", str(other), *asked) == 0
    assert Path("prompts.other-model.answers.jsonl").exists()
