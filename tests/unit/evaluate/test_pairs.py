"""What a language model thinks of pairs, against one answer at a time through transformers' own forward."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from tests.tiny import tiny_model_folder

from tunesmith.data.config import DataConfig, SourceConfig
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import DataError
from tunesmith.evaluate.config import EvaluateConfig
from tunesmith.evaluate.harness import evaluate
from tunesmith.models.adapters import attach, trainable
from tunesmith.models.config import LoraConfig, ModelConfig
from tunesmith.models.load import load_base
from tunesmith.models.reference import AdapterOff

PAIRS = [
    ("Hello", "Hi.", "I am fine, thank you. How can I help you today?"),
    ("What is the capital of France?", "The capital of France is Paris.", "12"),
    ("Good morning", "Guten Morgen.", "Please write a short poem."),
    ("Add 12 and 30", "The answer is 42.", "The answer is 30."),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"), tie_word_embeddings=False, initializer_range=0.2)


@pytest.fixture
def pairs(tmp_path) -> SourceConfig:
    return write(tmp_path / "pairs.jsonl", [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS])


def write(path: Path, records: list[dict]) -> SourceConfig:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return SourceConfig(path=str(path))


def alone(folder: Path, prompt: str, answer: str) -> tuple[float, int]:
    """Log-probability of an answer with its end, and its tokens."""
    tokenizer = load_tokenizer(folder)
    model = load_base(folder, ModelConfig(path=str(folder)))
    model.set_attn_implementation("eager")
    before = tokenizer.encode(prompt, specials=False)
    ids = before + tokenizer.encode(answer, specials=False) + [2]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    found = [logits[place - 1, ids[place]].item() for place in range(len(before), len(ids))]
    return sum(found), len(found)


def test_accuracy_and_margins_are_those_of_one_answer_at_a_time(folder, pairs):
    model, tokenizer = load_base(folder, ModelConfig(path=str(folder))), load_tokenizer(folder)
    found = evaluate(model, tokenizer, EvaluateConfig(data=(pairs,)))
    wanted = [(alone(folder, prompt, good), alone(folder, prompt, bad)) for prompt, good, bad in PAIRS]
    margins = np.array([good[0] - bad[0] for good, bad in wanted])
    per_token = np.array([good[0] / good[1] - bad[0] / bad[1] for good, bad in wanted])
    scores = found.scores["pairs"]
    assert set(scores) == {"accuracy", "margin", "accuracy_per_token", "margin_per_token"}
    assert scores["margin"].value == pytest.approx(margins.mean(), abs=1e-4)
    assert scores["accuracy"].value == pytest.approx((margins > 0).mean())
    assert scores["margin_per_token"].value == pytest.approx(per_token.mean(), abs=1e-4)
    assert scores["accuracy_per_token"].value == pytest.approx((per_token > 0).mean())
    assert all(score.n == 4 and score.low <= score.value <= score.high for score in scores.values())
    assert [row["margin"] for row in found.pairs] == pytest.approx(margins.tolist(), abs=1e-4)
    told = found.to_json()["pairs"]
    assert told["accuracy"].keys() == {"value", "low", "high", "n"}
    assert told["breakdown"]["source pairs.jsonl"]["accuracy"]["n"] == 4


def test_rewards_are_log_ratios_to_the_reference(folder, pairs):
    tokenizer = load_tokenizer(folder)
    model = attach(load_base(folder, ModelConfig(path=str(folder))), LoraConfig(rank=4))
    assert isinstance(model, PeftModel)
    fresh = evaluate(model, tokenizer, EvaluateConfig(data=(pairs,)), reference=AdapterOff(model)).scores["pairs"]
    assert fresh["reward_accuracy"].value == 0.5
    assert fresh["reward_margin"].value == 0.0
    torch.manual_seed(0)
    for parameter in trainable(model).values():
        parameter.data += 0.05 * torch.randn_like(parameter)
    base = load_base(folder, ModelConfig(path=str(folder)))
    before = evaluate(base, tokenizer, EvaluateConfig(data=(pairs,))).scores["pairs"]
    after = evaluate(model, tokenizer, EvaluateConfig(data=(pairs,)), reference=AdapterOff(model))
    scores = after.scores["pairs"]
    assert scores["reward_margin"].value != 0.0
    assert scores["reward_margin"].value == pytest.approx(scores["margin"].value - before["margin"].value, abs=1e-4)
    assert "reward_breakdown" in after.detail["pairs"]


def test_each_file_is_a_task_of_its_own_kind(folder, pairs, tmp_path):
    model, tokenizer = load_base(folder, ModelConfig(path=str(folder))), load_tokenizer(folder)
    said = write(tmp_path / "said.jsonl", [{"prompt": "Hello", "completion": " Hi."}])
    found = evaluate(model, tokenizer, EvaluateConfig(data=(pairs, said), metrics=("loss",)))
    assert set(found.scores["pairs"]) > {"accuracy", "margin"}
    assert set(found.scores["said"]) == {"loss"}


def test_pairs_that_are_all_too_long_cannot_be_measured(folder, pairs):
    model, tokenizer = load_base(folder, ModelConfig(path=str(folder))), load_tokenizer(folder)
    with pytest.raises(DataError) as caught:
        evaluate(model, tokenizer, EvaluateConfig(data=(pairs,)), DataConfig(max_length=8, overlong="split"))
    assert caught.value.diagnostic.code == "E153"


RANKS = [
    ("Hello", ["Hi.", "Hello, how are you?", "12"], [3.0, 2.0, 2.0]),
    ("Good morning", ["Guten Morgen.", "Please.", "42", "Paris."], [9.0, 8.0, 7.0, 6.0]),
    ("Add 12 and 30", ["The answer is 42.", "The answer is 30."], None),
]


@pytest.fixture
def rankings(tmp_path) -> SourceConfig:
    rows = [
        {"prompt": prompt, "answers": answers} | ({"scores": scores} if scores else {})
        for prompt, answers, scores in RANKS
    ]
    return write(tmp_path / "ranks.jsonl", rows)


def test_rankings_are_measured_by_which_answers_are_likelier(folder, rankings):
    model, tokenizer = load_base(folder, ModelConfig(path=str(folder))), load_tokenizer(folder)
    found = evaluate(model, tokenizer, EvaluateConfig(data=(rankings,)))
    sums = [[alone(folder, prompt, answer) for answer in answers] for prompt, answers, _ in RANKS]
    shares, first, margins = [], [], []
    for record, (_, answers, given) in zip(sums, RANKS, strict=True):
        ratings = given or list(range(len(answers), 0, -1))
        logs = [log for log, _ in record]
        hits = [x > y for x, a in zip(logs, ratings, strict=True) for y, b in zip(logs, ratings, strict=True) if a > b]
        shares.append(np.mean(hits))
        first.append(logs[0] == max(logs))
        margins.append(logs[0] - np.mean(logs[1:]))
    scores = found.scores["ranks"]
    names = {"accuracy", "best_first", "margin"}
    assert set(scores) == names | {f"{name}_per_token" for name in names}
    assert scores["accuracy"].value == pytest.approx(np.mean(shares))
    assert scores["best_first"].value == pytest.approx(np.mean(first))
    assert scores["margin"].value == pytest.approx(np.mean(margins), abs=1e-4)
    assert all(score.n == 3 and score.low <= score.value <= score.high for score in scores.values())
    for row, record in zip(found.pairs, sums, strict=True):
        assert row["likelihoods"] == pytest.approx([log for log, _ in record], abs=1e-4)
        assert row["tokens"] == [count for _, count in record]


def test_rankings_have_rewards_against_a_reference(folder, rankings):
    model = attach(load_base(folder, ModelConfig(path=str(folder))), LoraConfig(rank=4))
    assert isinstance(model, PeftModel)
    found = evaluate(model, load_tokenizer(folder), EvaluateConfig(data=(rankings,)), reference=AdapterOff(model))
    assert found.scores["ranks"]["reward_accuracy"].value == 0.5
    assert found.scores["ranks"]["reward_margin"].value == 0.0
    assert [len(row["rewards"]) for row in found.pairs] == [3, 4, 2]
