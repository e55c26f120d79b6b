"""Tiny models of every family that GGUF can hold, at widths that its types allow."""

from pathlib import Path
from typing import Any

import torch
from tests.tiny import tiny_model_folder
from transformers import AutoModelForCausalLM, PreTrainedModel

from tunesmith.export.gguf.types import FILE_TYPES
from tunesmith.export.gguf.vocabulary import read_vocabulary
from tunesmith.export.gguf.write import About, write_gguf

SIZE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "initializer_range": 0.08}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
YARN_OWN = {**YARN, "factor": 2.0, "attention_factor": 0.8}
GEMMA = {"head_dim": 64, "tie_word_embeddings": True}
LOCAL = {**GEMMA, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 8}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0 + at / 16 for at in range(16)],
    "long_factor": [1.0 + at for at in range(16)],
    "original_max_position_embeddings": 128,
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama-tied": ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "llama3-rope": ("llama", {"tie_word_embeddings": False, "rope_parameters": LLAMA3}),
    "linear-rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}}),
    "yarn": ("llama", {"rope_parameters": YARN}),
    "mistral": ("mistral", {"tie_word_embeddings": False, "head_dim": 32}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-yarn": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": YARN_OWN}),
    "qwen3": ("qwen3", {"tie_word_embeddings": False, "head_dim": 128}),
    "gemma": ("gemma", GEMMA),
    "gemma2": ("gemma2", LOCAL),
    "gemma3": ("gemma3_text", {**LOCAL, "num_hidden_layers": 7}),
    "phi3": ("phi3", {"tie_word_embeddings": False}),
    "phi3-long": ("phi3", {"tie_word_embeddings": False, "rope_parameters": LONG}),
    "olmo2": ("olmo2", {"tie_word_embeddings": False}),
}


def shape_folder(path: Path, name: str) -> Path:
    """A model whose vectors (norms, biases) are not what they begin as."""
    architecture, settings = SHAPES[name]
    folder = tiny_model_folder(path, architecture, **{**SIZE, **settings})
    model = loaded(folder)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def written(folder: Path, kind: str, path: Path) -> Path:
    model = loaded(folder)
    words = read_vocabulary(folder, model.config.vocab_size)
    write_gguf(path, model, FILE_TYPES[kind], words, About("tiny", "base", 512))
    return path
