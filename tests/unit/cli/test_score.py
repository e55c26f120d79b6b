"""`score`, and `eval` and `merge` of reward models and classifiers, as a user meets them."""

import json
from pathlib import Path

import pytest
from tests.unit.cli.test_model import call
from tests.unit.evaluate.test_evaluate_values import PAIRS
from tests.unit.evaluate.test_scoring import reward_model

from tunesmith.evaluate.scoring import Scorer


@pytest.fixture(scope="module")
def reward(tmp_path_factory) -> Path:
    return reward_model(tmp_path_factory.mktemp("reward"))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in PAIRS), encoding="utf-8")
    return path


def test_score_writes_a_row_per_record(reward: Path, pairs: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "scores.jsonl"
    assert call("score", str(reward), "--data", str(pairs), "-o", str(out), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["line"] for row in rows] == [1, 2, 3]
    assert rows[0]["file"] == str(pairs)
    wanted = Scorer.open(str(reward)).score([(each["prompt"], each["chosen"]) for each in PAIRS])
    assert [row["scores"][0] for row in rows] == pytest.approx(wanted, abs=1e-5)
    assert told["schema"] == 1
    assert told["records"] == 3
    assert told["scores"] == 6
    assert told["chosen_ahead"] == pytest.approx(sum(row["scores"][0] > row["scores"][1] for row in rows) / 3)
    assert "rows" not in told
    assert call("score", str(reward), "--data", str(pairs), "--limit", "2") == 0
    assert "2 records, 4 scores" in capsys.readouterr().out


def test_score_of_a_classifier_counts_its_classes(tmp_path: Path, capsys) -> None:
    folder = reward_model(tmp_path, 3, "label")
    data = tmp_path / "texts.jsonl"
    data.write_text('{"text": "Hello"}\n{"text": "The sea and the moon."}\n', encoding="utf-8")
    assert call("score", str(folder), "--data", str(data), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["classes"].keys() == {"a", "b", "c"}
    assert sum(told["classes"].values()) == 2
    assert sum(told["rows"][0]["probabilities"].values()) == pytest.approx(1)
    assert call("score", str(folder), "--data", str(data)) == 0
    assert "2 records" in capsys.readouterr().out


def test_eval_of_a_reward_model_tells_accuracy_calibration_and_length(
    reward: Path, pairs: Path, tmp_path: Path, capsys
) -> None:
    rows = tmp_path / "rows.jsonl"
    assert call("eval", str(reward), "--data", str(pairs), "--answers", str(rows), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pairs"]["accuracy"].keys() == {"value", "low", "high", "n"}
    assert {"margin", "calibration_error", "length_correlation", "breakdown", "calibration"} <= told["pairs"].keys()
    assert len(rows.read_text("utf-8").splitlines()) == 3
    assert call("eval", str(reward), "--data", str(pairs), "--metrics", "loss") == 0
    shown = capsys.readouterr()
    assert "chosen longer" in shown.out
    assert "how often right" in shown.out
    assert "--metrics is left out" in shown.err


def test_eval_of_a_classifier_shows_the_confusion(tmp_path: Path, capsys) -> None:
    folder = reward_model(tmp_path, 3, "label")
    data = tmp_path / "texts.jsonl"
    data.write_text('{"text": "Hello", "label": "a"}\n{"text": "42", "label": "b"}\n', encoding="utf-8")
    assert call("eval", str(folder), "--data", str(data)) == 0
    assert "labelled \\ found" in capsys.readouterr().out


def test_a_reward_model_does_not_chat_and_a_language_model_does_not_score(reward: Path, pairs: Path, capsys) -> None:
    assert call("chat", str(reward), "--prompt", "Hello") == 4
    assert "E242" in capsys.readouterr().err
    assert call("score", str(reward.parent / "base"), "--data", str(pairs)) == 4
    assert "E245" in capsys.readouterr().err


def test_help_of_score_does_not_load_torch(capsys) -> None:
    assert call("score", "--help") == 0
    assert "Usage" in capsys.readouterr().out
