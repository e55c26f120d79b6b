"""Heads measured on files: the kind of the records decides, and every figure is that of the scores."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.unit.evaluate.test_scoring import reward_model

from tunesmith.data.config import DataConfig, SourceConfig
from tunesmith.errors import DataError
from tunesmith.evaluate.scored import kind_of, score_source
from tunesmith.evaluate.scoring import Scorer
from tunesmith.evaluate.values import evaluate_values, judging
from tunesmith.export.opening import Opened, open_model
from tunesmith.models.meaning import Meaning, store_offset
from tunesmith.types import Message

PAIRS = [
    {"prompt": "Hello", "chosen": "Hi, how are you?", "rejected": "No."},
    {"prompt": "What is the capital of France?", "chosen": "Paris.", "rejected": "The sea and the moon."},
    {"prompt": "Add 12 and 30", "chosen": "42", "rejected": "12"},
]


def write(path: Path, records: list[dict]) -> SourceConfig:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return SourceConfig(path=str(path))


@pytest.fixture(scope="module")
def reward(tmp_path_factory) -> Path:
    return reward_model(tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="module")
def opened(reward: Path) -> Opened:
    return open_model(str(reward), wants="values")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Opened:
    return open_model(str(reward_model(tmp_path_factory.mktemp("classes"), 3, "label")), wants="values")


def measure(opened: Opened, *sources: SourceConfig, **settings):
    return evaluate_values(opened.model, opened.tokenizer, opened.source.meaning, sources, DataConfig(**settings))


def test_pairs_are_measured_as_the_scorer_scores_them(opened: Opened, reward: Path, tmp_path: Path) -> None:
    found = measure(opened, write(tmp_path / "dev.jsonl", PAIRS))
    scorer = Scorer.open(str(reward))
    chosen = scorer.score([(each["prompt"], each["chosen"]) for each in PAIRS])
    rejected = scorer.score([(each["prompt"], each["rejected"]) for each in PAIRS])
    margins = np.array(chosen) - np.array(rejected)
    scores = found.scores["dev"]
    assert scores["margin"].value == pytest.approx(margins.mean(), abs=1e-5)
    assert scores["accuracy"].value == pytest.approx((margins > 0).mean())
    assert [row["scores"] for row in found.rows] == pytest.approx(np.array([chosen, rejected]).T, abs=1e-5)
    told = found.to_json()["dev"]
    assert told.keys() == {*scores, "calibration", "breakdown"}
    assert told["breakdown"]["source dev.jsonl"]["accuracy"]["n"] == 3


def test_chats_with_several_turns_are_pairs_too(opened: Opened, tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "Hello"}]
    record = {
        "prompt": asked,
        "chosen": [{"role": "assistant", "content": "Hi."}],
        "rejected": [{"role": "assistant", "content": "Go away."}],
    }
    found = measure(opened, write(tmp_path / "dev.jsonl", [record]))
    chats = [((Message("user", "Hello"),), (Message("assistant", said),)) for said in ("Hi.", "Go away.")]
    wanted = Scorer(opened.model, opened.tokenizer, Meaning()).score(chats)
    assert found.rows[0]["scores"] == pytest.approx(wanted, abs=1e-5)


def test_rankings_and_feedback_are_measured_by_the_same_model(opened: Opened, tmp_path: Path) -> None:
    ranking = write(tmp_path / "ranks.jsonl", [{"prompt": "Hello", "answers": ["Hi.", "Ho.", "No."]}])
    feedback = write(
        tmp_path / "marks.jsonl",
        [{"prompt": "Hello", "completion": said, "label": said == "Hi."} for said in ("Hi.", "No.", "Go.")],
    )
    found = measure(opened, ranking, feedback)
    assert found.scores["ranks"].keys() == {"accuracy", "best_first"}
    assert found.scores["marks"].keys() == {"auc", "accuracy", "calibration_error"}
    assert [row["kind"] for row in found.rows] == ["ranking", "feedback", "feedback", "feedback"]
    first, second = np.array(found.rows[0]["scores"]), [row["scores"][0] for row in found.rows[1:]]
    assert second[:2] == pytest.approx([first[0], first[2]], abs=1e-5)


def test_classes_are_measured_by_name(classifier: Opened, tmp_path: Path) -> None:
    records = [{"text": text, "label": label} for text, label in (("Hello", "a"), ("42", "c"), ("Paris", "a"))]
    found = measure(classifier, write(tmp_path / "dev.jsonl", records))
    wanted = [row["class"] for row in found.rows]
    assert found.scores["dev"]["accuracy"].value == pytest.approx(
        np.mean([name == record["label"] for name, record in zip(wanted, records, strict=True)])
    )
    assert np.sum(found.detail["dev"]["confusion"]["counts"]) == 3
    assert sum(found.rows[0]["probabilities"].values()) == pytest.approx(1)
    with pytest.raises(DataError, match="E218"):
        measure(classifier, write(tmp_path / "odd.jsonl", [{"text": "Hello", "label": "unheard of"}]))


def test_numbers_and_steps_have_measures_of_their_own(tmp_path: Path) -> None:
    regressor = open_model(str(reward_model(tmp_path / "a", 1, "label")), wants="values")
    records = [{"text": "Hello", "label": 0.5}, {"text": "Paris", "label": 2}, {"text": "42", "label": -1}]
    found = measure(regressor, write(tmp_path / "dev.jsonl", records))
    assert found.scores["dev"].keys() == {"pearson", "spearman", "mse"}
    process = open_model(str(reward_model(tmp_path / "b", 1, "process")), wants="values")
    records = [{"prompt": "Add 12 and 30", "steps": ["12 is 12.", "It is 42."], "labels": [True, False]}]
    found = measure(process, write(tmp_path / "dev.jsonl", records))
    assert found.scores["dev"]["step_accuracy"].n == 2
    assert len(found.rows[0]["scores"]) == len(found.rows[0]["probabilities"]) == 2


def test_records_beyond_the_length_are_counted(opened: Opened, tmp_path: Path) -> None:
    long = {"prompt": "Hello " * 600, "chosen": "a", "rejected": "b"}
    found = measure(opened, write(tmp_path / "dev.jsonl", [*PAIRS, long]), max_length=100_000)
    assert found.scores["dev"]["accuracy"].n == 3
    assert found.unused["dev"] == {"overlong": 1}
    assert judging(DataConfig(overlong="split", train_on="all"), opened.model).overlong == "drop"
    with pytest.raises(DataError, match="E153"):
        measure(opened, write(tmp_path / "long.jsonl", [long]))


def test_any_records_can_be_scored_and_the_offset_is_left_out(tmp_path: Path) -> None:
    folder = reward_model(tmp_path)
    store_offset(folder, 1.5, "x")
    opened = open_model(str(folder), wants="values")
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    files = {
        "pair": PAIRS,
        "sequence": [{"prompt": "Hello", "completion": "Hi."}, {"prompt": "Hello", "completion": "No."}],
        "label": [{"text": "Hello", "label": "some class"}],
        "feedback": [{"messages": chat, "label": True}],
    }
    meaning = opened.source.meaning
    rows = {}
    for kind, records in files.items():
        source = write(tmp_path / f"{kind}.jsonl", records)
        rows[kind], left = score_source(opened.model, opened.tokenizer, meaning, source, DataConfig())
        assert not left
        assert [row["kind"] for row in rows[kind]] == [kind] * len(records)
    scorer = Scorer.open(str(folder))
    assert rows["sequence"][1]["scores"] == pytest.approx(scorer.score([("Hello", "No.")]), abs=1e-5)
    chats = scorer.score([((Message("user", "Hello"),), "Hi.")])
    assert rows["feedback"][0]["scores"] == pytest.approx(chats, abs=1e-5)
    messages = write(tmp_path / "chat.jsonl", [{"messages": chat}])
    made, _ = score_source(opened.model, opened.tokenizer, meaning, messages, DataConfig())
    assert made[0]["scores"] == pytest.approx(chats, abs=1e-5)
    assert made[0]["line"] == 1


def test_the_kind_is_that_of_the_first_record(tmp_path: Path) -> None:
    kinds = ("pair", "ranking", "feedback")
    assert kind_of(write(tmp_path / "a.jsonl", PAIRS), kinds) == "pair"
    assert kind_of(write(tmp_path / "b.jsonl", [{"prompt": "a", "answers": ["b", "c"]}]), kinds) == "ranking"
    assert kind_of(write(tmp_path / "c.jsonl", [{"text": "a"}]), kinds) == "pair"
