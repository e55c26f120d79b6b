"""Merged reward models and classifiers: one folder for us and for transformers, with the same scores in both."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from tests.tiny import tiny_model_folder
from tests.unit.evaluate.test_scoring import CHATS, ITEMS
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tunesmith.errors import ModelError
from tunesmith.evaluate.scoring import Scorer
from tunesmith.export import huggingface
from tunesmith.export.huggingface import merge_run
from tunesmith.export.opening import find_model, load_source, open_model
from tunesmith.models.adapters import trainable
from tunesmith.models.config import LoraConfig, ModelConfig
from tunesmith.models.load import load_model
from tunesmith.models.meaning import Meaning, store_offset
from tunesmith.models.save import save_weights
from tunesmith.track.run_dir import RunDir
from tunesmith.train.checkpoint import CheckpointStore
from tunesmith.types import Task

REWARD = Task("pair", "values")


def trained(base: Path, outputs: int = 1, seed: int = 1, **settings):
    adapter = settings.pop("adapter", LoraConfig(rank=4))
    model = load_model(base, ModelConfig(path=str(base), adapter=adapter, **settings), outputs=outputs)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def make_run(path: Path, base: Path, task: Task, dtype: str = "auto") -> RunDir:
    run = RunDir.create(path / "runs", "first")
    model = {"path": str(base), "adapter": {"method": "lora", "rank": 4}, "dtype": dtype}
    run.write_config(yaml.safe_dump({"model": model, "data": {"train": []}, "objective": {"name": "reward"}}))
    about = {"kind": task.kind, "reads": task.reads, "classes": list(task.classes)}
    run.write_run({"model": {"path": str(base), "folder": str(base)}, "task": about})
    return run


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_model_folder(tmp_path / "base", tie_word_embeddings=False, initializer_range=0.2)


def theirs(folder: Path) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    chats = [[{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in CHATS]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    with torch.no_grad():
        return model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0].tolist()


def test_merged_reward_model_scores_alike_here_and_in_transformers(base: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, base, REWARD)
    folder = save_weights(trained(base), run.path, base, REWARD)
    store_offset(folder, 0.75, "dev.jsonl")
    scored = Scorer.open(str(run.path)).score(ITEMS)
    report = merge_run(run.path, tmp_path / "merged")
    assert report.difference <= report.limit
    assert report.unit == "of the largest score"
    assert Scorer.open(str(tmp_path / "merged")).score(ITEMS) == pytest.approx(scored, abs=1e-5)
    assert theirs(tmp_path / "merged") == pytest.approx([score + 0.75 for score in scored], abs=1e-5)
    config = json.loads((tmp_path / "merged" / "config.json").read_text("utf-8"))
    assert config["id2label"] == {"0": "reward"}
    assert config["problem_type"] == "regression"
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    card = (tmp_path / "merged" / "README.md").read_text("utf-8")
    assert "text-classification" in card
    assert "subtracts 0.75" in card
    assert "of the largest score" in card


def test_classes_keep_their_names(base: Path, tmp_path: Path) -> None:
    task = Task("label", "values", ("ham", "spam"))
    run = make_run(tmp_path, base, task)
    save_weights(trained(base, 2), run.path, base, task)
    merge_run(run.path, tmp_path / "merged")
    assert find_model(str(tmp_path / "merged")).meaning == Meaning("label", ("ham", "spam"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert loaded.config.id2label == {0: "ham", 1: "spam"}
    assert "`spam`" in (tmp_path / "merged" / "README.md").read_text("utf-8")


def test_the_head_stays_in_fp32_below_rounded_weights(base: Path, tmp_path: Path) -> None:
    model = load_model(base, ModelConfig(path=str(base), dtype="bfloat16"), outputs=1).get_base_model()
    assert model.dtype == torch.bfloat16
    run = make_run(tmp_path, base, REWARD, "bfloat16")
    model = trained(base, dtype="bfloat16")
    save_weights(model, run.path, base, REWARD)
    merge_run(run.path, tmp_path / "merged")
    again = open_model(str(tmp_path / "merged"), dtype="bfloat16", wants="values").model
    head = next(parameter for name, parameter in trainable(model).items() if "score" in name)
    assert torch.equal(again.score.weight, head)
    assert again.model.embed_tokens.weight.dtype == torch.bfloat16
    assert computed_in_fp32(tmp_path / "merged") == pytest.approx(computed_in_fp32(run.path), abs=0.05)


def computed_in_fp32(folder: Path) -> list[float]:
    """Scores whose only rounding is that of the stored weights: products of bf16 differ from one CPU to the next."""
    opened = open_model(str(folder), dtype="float32", wants="values")
    return Scorer(opened.model, opened.tokenizer, opened.source.meaning).score(ITEMS)


def test_an_unfinished_run_is_known_by_its_checkpoint(base: Path, tmp_path: Path) -> None:
    task = Task("label", "values", ("a", "b", "c"))
    run = make_run(tmp_path, base, task)
    model = trained(base, 3)
    weights = {name: parameter.detach() for name, parameter in trainable(model).items()}
    CheckpointStore(run.checkpoints).save(4, {"weights": weights}, {})
    source = find_model(str(run.path))
    assert source.outputs == 3
    assert source.meaning == Meaning("label", ("a", "b", "c"))
    loaded = trainable(load_source(source).requires_grad_(True))
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_a_merge_that_loses_the_head_is_refused(base: Path, tmp_path: Path, monkeypatch) -> None:
    run = make_run(tmp_path, base, REWARD)
    save_weights(trained(base), run.path, base, REWARD)

    def lose(model):
        merged = model.base_model.unload()
        torch.nn.init.zeros_(merged.score.weight)
        return merged

    monkeypatch.setattr(huggingface, "merge", lose)
    with pytest.raises(ModelError, match="E156"):
        merge_run(run.path, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
