"""The models that are trained: the starter, and a random-initialised one of a larger shape."""

import sys
from pathlib import Path

from common.environments import ENVIRONMENTS
from common.process import run_side

SEED = 0
QWEN3 = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "tie_word_embeddings": True,
}
TITLES = {"smollm2": "SmolLM2-135M-Instruct", "qwen3-0.6b": "Qwen3-0.6B shape, random weights"}


def starter() -> Path:
    from tunesmith.models.starter import ensure_starter

    return ensure_starter()


def model_folder(name: str, given: Path | None) -> Path:
    """The folder that every side loads; the random-initialised one is written on first use and kept."""
    if name == "smollm2":
        return given or starter()
    folder = ENVIRONMENTS / f"{name}-seed{SEED}"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        about = {"tokenizer": str(given or starter()), "model": str(folder), "shape": QWEN3, "seed": SEED, "threads": 1}
        run_side(sys.executable, "write_model.py", about)
    return folder
