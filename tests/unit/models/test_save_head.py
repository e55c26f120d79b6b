"""Saved reward models and classifiers give the same scores in transformers, with padding, by its own tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny import tiny_model_folder
from tests.unit.models.values import plain
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tunesmith.data.packing import batch_of
from tunesmith.export.opening import find_model
from tunesmith.models.adapters import trainable
from tunesmith.models.config import FreezeConfig, FullConfig, LoraConfig, ModelConfig
from tunesmith.models.forward import read_only
from tunesmith.models.load import load_base, load_model
from tunesmith.models.meaning import Meaning, read_meaning, store_offset
from tunesmith.models.save import save_weights
from tunesmith.types import Task

TEXTS = (
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n",
    "<|im_start|>user\nAdd 12 and 30, please.<|im_end|>\n<|im_start|>assistant\nIt is 42.<|im_end|>\n",
    "The quick brown fox<|im_end|>",
    "The lazy dog",
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_model_folder(tmp_path / "base", tie_word_embeddings=False, initializer_range=0.2)


def trained(base: Path, outputs: int = 1, **settings):
    model = load_model(base, ModelConfig(path=str(base), **settings), outputs=outputs)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def ours(model, tokenizer) -> torch.Tensor:
    rows = [np.array(tokenizer(text)["input_ids"]) for text in TEXTS]
    return read_only(model, batch_of([plain(row) for row in rows], "values"), "values").values


@torch.no_grad()
def theirs(model, tokenizer) -> torch.Tensor:
    return model.eval()(**tokenizer(list(TEXTS), padding=True, return_tensors="pt")).logits


@pytest.mark.parametrize("adapter", [FullConfig(), FreezeConfig(last=1)])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_saved_model_scores_a_padded_batch_alike(base: Path, tmp_path: Path, adapter, side: str) -> None:
    model = trained(base, outputs=2, adapter=adapter)
    folder = save_weights(model, tmp_path, base, Task("label", "values", ("spam", "ham")))
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    assert tokenizer.pad_token_id == loaded.config.pad_token_id != tokenizer.eos_token_id
    torch.testing.assert_close(theirs(loaded, tokenizer), ours(model, tokenizer), atol=1e-5, rtol=1e-5)
    assert loaded.config.id2label == {0: "spam", 1: "ham"}
    assert loaded.config.label2id == {"spam": 0, "ham": 1}
    assert loaded.config.problem_type == "single_label_classification"
    assert loaded.config.num_labels == 2
    again = load_base(folder, ModelConfig(path=str(folder)), outputs=2)
    assert torch.equal(ours(again, tokenizer), ours(model, tokenizer))
    assert read_meaning(folder) == Meaning("label", ("spam", "ham"))


def test_the_padding_of_the_base_would_read_another_place(base: Path, tmp_path: Path) -> None:
    model = trained(base, adapter=FullConfig())
    folder = save_weights(model, tmp_path, base)
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    old = AutoTokenizer.from_pretrained(base)
    loaded.config.pad_token_id = old.pad_token_id
    difference = (theirs(loaded, old) - ours(model, old)).abs()[:, 0]
    assert difference[2] > 1e-3  # the text that ends with <|im_end|>
    assert difference[3] < 1e-5


def test_an_adapter_folder_loads_in_transformers_with_two_words_about_its_head(base: Path, tmp_path: Path) -> None:
    model = trained(base, adapter=LoraConfig(rank=4))
    folder = save_weights(model, tmp_path, base, Task("pair", "values"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, pad_token_id=tokenizer.pad_token_id, dtype=torch.float32
    )
    torch.testing.assert_close(theirs(loaded, tokenizer), ours(model, tokenizer), atol=1e-5, rtol=1e-5)
    source = find_model(str(folder))
    assert source.outputs == 1
    assert source.meaning == Meaning("pair")


def test_the_offset_is_told_beside_the_weights_and_changes_none(base: Path, tmp_path: Path) -> None:
    model = trained(base, adapter=FullConfig())
    folder = save_weights(model, tmp_path, base, Task("ranking", "values"))
    before = (folder / "model.safetensors").read_bytes()
    store_offset(folder, 1.25, "pairs.jsonl")
    assert read_meaning(folder) == Meaning("ranking", (), 1.25, "pairs.jsonl")
    assert (folder / "model.safetensors").read_bytes() == before
    assert json.loads((folder / "head.json").read_text("utf-8"))["schema"] == 1


def test_a_classifier_of_others_tells_its_classes_by_its_config(base: Path, tmp_path: Path) -> None:
    labels = {0: "no", 1: "yes", 2: "maybe"}
    model = AutoModelForSequenceClassification.from_pretrained(base, id2label=labels, num_labels=3)
    model.save_pretrained(tmp_path / "theirs")
    assert read_meaning(tmp_path / "theirs") == Meaning("label", ("no", "yes", "maybe"))
    assert find_model(str(tmp_path / "theirs")).outputs == 3
    assert find_model(str(base)).outputs == 0
