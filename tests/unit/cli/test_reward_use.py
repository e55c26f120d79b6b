"""A trained reward model marks answers: for sample, label, eval --against, and a round of online training."""

import json
import os
from pathlib import Path

import pytest
from tests.command import call
from tests.tiny import tiny_model_folder

from tunesmith.distributed.mesh import Mesh
from tunesmith.evaluate.scoring import Scorer
from tunesmith.recipe import load_recipe
from tunesmith.rollout.answers import read_answers
from tunesmith.run import execute
from tunesmith.track.progress import make_progress
from tunesmith.track.run_dir import RunDir
from tunesmith.types import Message

LIVELY = {"tie_word_embeddings": False, "initializer_range": 0.2}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[str, str]:
    """A model, and a reward model that was trained for a step."""
    folder = tmp_path_factory.mktemp("models")
    os.environ["TUNESMITH_HOME"] = str(folder / "home")
    base = tiny_model_folder(folder / "base", **LIVELY)
    rows = [{"prompt": f"number {at}?", "chosen": "yes", "rejected": "a fox and a dog"} for at in range(4)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"model.path={base}", f"data.train={folder / 'pairs.jsonl'}", "train.steps=1", "train.optimizer.lr=1e-2"]
    made = RunDir.create(folder / "runs", "reward")
    with make_progress(quiet=True) as progress:
        execute(load_recipe("reward", words, {}).recipe, made, Mesh(), progress)
    return str(base), str(made.path)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    Path("prompts.txt").write_text("Hello\nName a sea.\nAnd?\n", "utf-8")
    return tmp_path


def test_the_best_of_n_is_the_one_with_the_highest_reward(models, capsys):
    words = ["--prompts", "prompts.txt", "-n", "4", "--max-new-tokens", "6", "-o", "answers.jsonl"]
    assert call("sample", models[0], *words, "--best-by", models[1], "--json") == 0
    told = json.loads(capsys.readouterr().out)
    rows = read_answers("answers.jsonl")
    scorer = Scorer.open(models[1])
    best = [json.loads(line) for line in Path(told["best"]).read_text("utf-8").splitlines()]
    for row, record in zip(rows, best, strict=True):
        texts = [text for text in row.answers if text.strip()]
        rewards = scorer.score([(row.prompt.turns, (Message("assistant", text),)) for text in texts])
        assert record["completion"][0]["content"] == texts[rewards.index(max(rewards))]


def test_label_and_eval_take_a_reward_model(models, capsys):
    words = ["--prompts", "prompts.txt", "-n", "4", "--max-new-tokens", "6", "-o", "answers.jsonl"]
    assert call("sample", models[0], *words) == 0
    label = ["label", "answers.jsonl", "-o", "pairs.jsonl", "--reward", models[1], "--unfinished", "keep"]
    assert call(*label) == 0
    for line in Path("pairs.jsonl").read_text("utf-8").splitlines():
        pair = json.loads(line)
        assert pair["score_chosen"] > pair["score_rejected"]
    capsys.readouterr()
    duel = ["--against", models[0], "--data", "prompts.txt", "--reward", models[1], "--max-new-tokens", "6", "--json"]
    assert call("eval", models[0], *duel) == 0
    assert json.loads(capsys.readouterr().out)["rate"]["value"] == 0.5
    assert call("label", "answers.jsonl", "-o", "x.jsonl", "--reward", models[0]) == 4
    assert "E245" in capsys.readouterr().err


def test_a_round_learns_from_a_reward_model(models, capsys):
    settings = [f"model.path={models[0]}", "data.train=prompts.txt", f"online.label.reward={models[1]}", "run.name=r"]
    settings += ["online.rounds=1", "online.sampling.max_new_tokens=6", "online.label.unfinished=keep"]
    assert call("train", "online_dpo", *settings, "--yes", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["rounds"]
    assert found["labelled"]["records"] > 0
    assert found["labelled"]["best_mark"] > found["labelled"]["mean_mark"]
    assert f"reward: {models[1]}" in Path("runs/r/config.yaml").read_text("utf-8")


def test_a_model_that_writes_no_text_is_refused_before_anything_else(models, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    assert call("sample", models[1], "--prompts", "nowhere.jsonl", "-o", "out.jsonl") == 4
    assert "E242" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
