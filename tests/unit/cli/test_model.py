"""`eval` and `merge` as a user meets them."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from tests.command import call
from tests.tiny import tiny_model_folder

from tunesmith.models.adapters import attach, trainable
from tunesmith.models.config import LoraConfig, ModelConfig
from tunesmith.models.load import load_base
from tunesmith.models.save import save_weights
from tunesmith.track.run_dir import RunDir


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"), tie_word_embeddings=False, initializer_range=0.2)


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory) -> Path:
    """The directory of a finished LoRA run."""
    made = RunDir.create(tmp_path_factory.mktemp("runs"), "first")
    model = attach(load_base(folder, ModelConfig(path=str(folder))), LoraConfig(rank=4))
    torch.manual_seed(0)
    for parameter in trainable(model).values():
        parameter.data += 0.05 * torch.randn_like(parameter)
    made.write_config(yaml.safe_dump({"model": {"path": str(folder), "adapter": {"method": "lora", "rank": 4}}}))
    made.write_run({"model": {"path": str(folder), "folder": str(folder)}})
    save_weights(model, made.path, folder)
    return made.path


def test_eval_prints_scores_and_intervals_as_json(finished: Path, tmp_path: Path, capsys) -> None:
    data = tmp_path / "dev.jsonl"
    data.write_text(
        "".join(json.dumps({"instruction": text, "output": "Paris."}) + "\n" for text in ("Capital?", "City?")), "utf-8"
    )
    words = ("--metrics", "loss,valid_json", "-m", "rouge_l", "--max-new-tokens", "8")
    answers = tmp_path / "answers.jsonl"
    assert call("eval", str(finished), "--data", str(data), *words, "--answers", str(answers), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == 1
    assert told["dev"].keys() == {"loss", "valid_json", "rouge_l"}
    assert told["dev"]["valid_json"].keys() == {"value", "low", "high", "n"}
    assert told["dev"]["valid_json"]["n"] == 2
    assert len(answers.read_text("utf-8").splitlines()) == 2
    assert call("eval", str(finished), "--data", str(data), *words) == 0
    assert "95 % interval" in capsys.readouterr().out


def test_unknown_metric_is_told_with_the_nearest(folder: Path, capsys) -> None:
    assert call("eval", str(folder), "--data", "x.jsonl", "--metrics", "exact_mach") == 2
    assert "did you mean exact_match?" in capsys.readouterr().err
    assert call("chat", str(folder), "--weights", "finall") == 2
    assert "did you mean final?" in capsys.readouterr().err


def test_merge_and_its_refusals(finished: Path, folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "merged"
    assert call("merge", str(finished), str(out), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == 1
    assert told["difference"] <= told["limit"]
    assert (out / "model.safetensors").is_file()
    assert call("merge", str(finished), str(out)) == 2
    assert "E157" in capsys.readouterr().err
    assert call("chat", str(tmp_path / "nowhere"), "--prompt", "Hello") == 4


def test_help_of_the_commands_does_not_load_torch(capsys) -> None:
    for command in ("chat", "eval", "merge"):
        assert call(command, "--help") == 0
        assert "Usage" in capsys.readouterr().out


def test_eval_measures_pairs_before_and_after(folder: Path, finished: Path, tmp_path: Path, capsys) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps({"prompt": "Hello", "chosen": "Hi.", "rejected": "Go away."}) + "\n")
    rows = tmp_path / "rows.jsonl"
    assert call("eval", str(folder), "--data", str(data), "--json") == 0
    before = json.loads(capsys.readouterr().out)["pairs"]
    assert "reward_accuracy" not in before
    assert call("eval", str(finished), "--data", str(data), "--answers", str(rows), "--json") == 0
    after = json.loads(capsys.readouterr().out)["pairs"]
    assert after["reward_margin"]["value"] == pytest.approx(
        after["margin"]["value"] - before["margin"]["value"], abs=1e-4
    )
    assert after["accuracy"].keys() == {"value", "low", "high", "n"}
    assert json.loads(rows.read_text())["reward_margin"] == pytest.approx(after["reward_margin"]["value"])
    assert call("eval", str(finished), "--data", str(data)) == 0
    out = capsys.readouterr().out
    assert "accuracy_per_token" in out
    assert "chosen shorter" in out


def test_eval_measures_rankings(folder: Path, finished: Path, tmp_path: Path, capsys) -> None:
    data = tmp_path / "ranks.jsonl"
    data.write_text(json.dumps({"prompt": "Hello", "answers": ["Hi.", "Ho there.", "Go away."]}) + "\n")
    rows = tmp_path / "rows.jsonl"
    assert call("eval", str(finished), "--data", str(data), "--answers", str(rows), "--json") == 0
    told = json.loads(capsys.readouterr().out)["ranks"]
    assert told["reward_accuracy"].keys() == {"value", "low", "high", "n"}
    assert len(json.loads(rows.read_text())["likelihoods"]) == 3
    assert call("eval", str(folder), "--data", str(data)) == 0
    out = capsys.readouterr().out
    assert "best_first_per_token" in out
    assert "reward_accuracy" not in out


def test_a_full_run_is_compared_with_the_model_it_began_as(folder: Path, tmp_path: Path, capsys) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps({"prompt": "Hello", "chosen": "Hi.", "rejected": "Go away."}) + "\n")
    made = RunDir.create(tmp_path / "runs", "full")
    model = load_base(folder, ModelConfig(path=str(folder)))
    for parameter in model.parameters():
        parameter.data *= 1.05
    settings = {"objective": {"name": "dpo"}, "model": {"path": str(folder), "adapter": {"method": "full"}}}
    made.write_config(yaml.safe_dump(settings))
    made.write_run({"model": {"path": str(folder), "folder": str(folder)}})
    save_weights(model, made.path, folder)
    assert call("eval", str(folder), "--data", str(data), "--json") == 0
    before = json.loads(capsys.readouterr().out)["pairs"]
    assert call("eval", str(made.path), "--data", str(data), "--json") == 0
    after = json.loads(capsys.readouterr().out)["pairs"]
    difference = after["margin"]["value"] - before["margin"]["value"]
    assert after["reward_margin"]["value"] == pytest.approx(difference, abs=1e-3)
    assert difference != 0


def test_a_run_is_a_start_and_an_adapter_is_no_whole_model(
    folder: Path, finished: Path, tmp_path: Path, capsys
) -> None:
    data = tmp_path / "chats.jsonl"
    data.write_text(json.dumps({"prompt": "Hello", "completion": "Hi."}) + "\n")
    words = ["plan", "sft", f"data.train={data}"]
    assert call(*words, f"model.path={folder}", f"model.adapter_path={finished}") == 0
    capsys.readouterr()
    assert call(*words, f"model.path={finished}") == 4
    err = capsys.readouterr().err
    assert "is an adapter, not a whole model" in err
    assert f"model.path={folder} model.adapter_path={finished / 'adapter'}" in err
