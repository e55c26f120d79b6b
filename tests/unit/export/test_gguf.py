"""GGUF files of every family and type answer as their models, by our reading, by transformers' and by llama.cpp."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from tests.tiny import tiny_model_folder
from tests.unit.export.shapes import SHAPES, YARN, loaded, shape_folder, written
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import ModelError, UsageError
from tunesmith.export.gguf.engine import llama_ids, llama_logits
from tunesmith.export.gguf.families import family_of
from tunesmith.export.gguf.reading import Reading
from tunesmith.export.gguf.spelling import encode
from tunesmith.export.gguf.tensors import as_stored
from tunesmith.export.gguf.types import FILE_TYPES, file_type
from tunesmith.export.gguf.vocabulary import read_vocabulary
from tunesmith.export.verifying import PROMPTS, compared, logits_of

ROWS = [[5, 9, 200, 31], list(range(20, 60))]
NEEDS_LLAMA = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
LARGEST = {"F32": 1e-4, "F16": 4e-2, "BF16": 0.3, "Q8_0": 0.8, "Q6_K": 2.0, "Q2_K": 12.0}  # of a logit; deviation 1.3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = shape_folder(tmp_path_factory.mktemp(name) / "model", name)
        return made[name]

    return folder


def crossed() -> list[Any]:
    """Every shape in four types and every type of one shape; before a release every shape in every type."""
    pairs = [(name, kind) for name in SHAPES for kind in FILE_TYPES]
    often = {"F32", "Q8_0", "Q4_K_M", "Q2_K"}
    return [
        pytest.param(
            name, kind, marks=() if name == "qwen2" or kind in often else pytest.mark.nightly, id=f"{name}-{kind}"
        )
        for name, kind in pairs
    ]


@pytest.mark.parametrize(("name", "kind"), crossed())
def test_every_family_in_every_type_answers_as_the_model(folders, tmp_path, name, kind) -> None:
    path = written(folders(name), kind, tmp_path / "model.gguf")
    wanted = logits_of(loaded(folders(name)), ROWS)
    found = torch.cat(Reading(path).logits(ROWS))
    difference, logit, _ = compared(wanted, found)
    assert difference <= FILE_TYPES[kind].limit
    assert logit <= LARGEST.get(kind, 6.0)
    unexplained, logit_left, _ = compared(logits_of(as_stored(loaded(folders(name)), FILE_TYPES[kind]), ROWS), found)
    assert unexplained < 1e-5
    assert logit_left < 1e-3
    if kind != "F32":
        assert logit > 1e-4, "nothing was rounded"


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"])
def test_transformers_reads_the_same(folders, tmp_path, name) -> None:
    written(folders(name), "F32", tmp_path / "model.gguf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    _, logit, agreement = compared(logits_of(loaded(folders(name)), ROWS), logits_of(model, ROWS))
    assert logit < 1e-3
    assert agreement == 1


@NEEDS_LLAMA
@pytest.mark.parametrize(("name", "kind"), crossed())
def test_llama_cpp_reads_the_same(folders, tmp_path, name, kind) -> None:
    path = written(folders(name), kind, tmp_path / "model.gguf")
    found = llama_logits(path, ROWS)
    difference, _, _ = compared(torch.cat(Reading(path).logits(ROWS)), found)
    assert difference < (2e-5 if kind in ("F32", "F16") else 1e-2)
    tokenizer = load_tokenizer(folders(name))
    assert llama_ids(path, PROMPTS) == [tokenizer.encode(text, specials=False) for text in PROMPTS]


def test_a_wrong_order_of_rows_is_seen(folders, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tunesmith.export.gguf.tensors.interleaved", lambda rows, width: rows)
    path = written(folders("llama"), "F32", tmp_path / "model.gguf")
    difference, _, _ = compared(logits_of(loaded(folders("llama")), ROWS), torch.cat(Reading(path).logits(ROWS)))
    assert difference > 10 * FILE_TYPES["F32"].limit


def test_a_model_with_more_rows_than_tokens_is_filled_up(tmp_path) -> None:
    folder = tiny_model_folder(tmp_path / "model", vocab_size=512)
    path = written(folder, "F32", tmp_path / "model.gguf")
    file = Reading(path)
    tokens, kinds = file.fields["tokenizer.ggml.tokens"], file.fields["tokenizer.ggml.token_type"]
    assert len(tokens) == file.fields["llama.vocab_size"] == 512
    assert tokens[-1] == "[PAD511]"
    assert [kinds[at] for at in (1, 300, 511)] == [3, 1, 5]
    with pytest.raises(ModelError, match="E434"):
        read_vocabulary(folder, 100)


def test_tokenizer_and_template_come_back(folders, tmp_path) -> None:
    written(folders("qwen2"), "F32", tmp_path / "model.gguf")
    own, other = load_tokenizer(folders("qwen2")), AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    fields = Reading(tmp_path / "model.gguf").fields
    for text in PROMPTS:
        assert encode(fields, text) == own.encode(text, specials=False) == other.encode(text, add_special_tokens=False)
    assert fields["tokenizer.chat_template"] == own.template().text
    named = [fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "unknown", "padding")]
    assert named == [1, 2, 0, 2]
    assert fields["tokenizer.ggml.add_bos_token"] is False


@pytest.mark.parametrize(
    ("architecture", "settings", "said"),
    [
        ("gpt_neox", {}, "E431"),
        ("llama", {"hidden_act": "gelu"}, "activation gelu"),
        ("gemma2", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar 100"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 2}, "order of local layers"),
        ("gemma", {"tie_word_embeddings": False}, "a head of its own"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8}, "sliding windows"),
        ("olmo2", {"attention_bias": True}, "attention_bias"),
        ("llama", {"rope_parameters": {**YARN, "beta_slow": 2.0}}, "beta_slow 2; the format means 1"),
        ("qwen2", {"rope_parameters": {**YARN, "truncate": False}}, "truncate: false"),
        (
            "gemma3_text",
            {
                "rope_parameters": {
                    "full_attention": YARN,
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                }
            },
            "rotary embedding of type yarn",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rotary embedding of type dynamic",
        ),
    ],
)
def test_what_the_format_cannot_say_is_refused(tmp_path, architecture, settings, said) -> None:
    model = loaded(tiny_model_folder(tmp_path / "model", architecture, **settings))
    with pytest.raises(ModelError, match=said):
        family_of(model.config)


def test_damaged_and_unknown_files(folders, tmp_path) -> None:
    path = written(folders("llama"), "F32", tmp_path / "model.gguf")
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelError, match="E082"):
        Reading(tmp_path / "cut.gguf")
    writer = GGUFWriter(tmp_path / "other.gguf", "bert")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"E431.*bert"):
        Reading(tmp_path / "other.gguf")
    with pytest.raises(UsageError, match="q4_k_m"):
        file_type("q4_k")
