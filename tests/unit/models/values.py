"""Sequence classifiers of every supported architecture, and examples whose values are read."""

from pathlib import Path

import numpy as np
import torch
from tests.unit.models.architectures import VOCABULARY, build
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel

from tunesmith.models.config import ModelConfig
from tunesmith.models.load import load_base
from tunesmith.types import Example

ENCODERS: dict[str, dict] = {
    "bert": {},
    "roberta": {"max_position_embeddings": 258},
    "electra": {"embedding_size": 32},
    "xlm-roberta": {"max_position_embeddings": 258},
    "distilbert": {"dim": 64, "hidden_dim": 96, "n_layers": 3, "n_heads": 4},
    "modernbert": {"local_attention": 6, "cls_token_id": 1, "sep_token_id": 2},
    "deberta-v2": {},
}
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}


def classifier(architecture: str, folder: Path, outputs: int, attention: str = "auto") -> PreTrainedModel:
    """A language model or encoder without a head, written to `folder` and loaded with one, all of it trainable."""
    if architecture in ENCODERS:
        torch.manual_seed(0)
        config = AutoConfig.for_model(architecture, **{**SIZE, **ENCODERS[architecture]})
        model = AutoModelForMaskedLM.from_config(config).float()
        for name, parameter in model.named_parameters():
            if "bias" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    else:
        model = build(architecture)
    model.save_pretrained(folder)
    settings = ModelConfig(path=str(folder), attention=attention)
    return load_base(folder, settings, outputs=outputs).eval().requires_grad_(True)


def tree(prompt: np.ndarray, answers: list[np.ndarray], chained: bool = False) -> Example:
    """A prompt with answers whose last tokens are read."""
    parts = [prompt, *answers]
    ends = np.cumsum([len(part) for part in parts])
    weights = np.zeros(ends[-1], dtype=np.float32)
    weights[ends[1:] - 1] = 1
    cuts = tuple(int(end) for end in ends[:-1])
    tokens = np.concatenate(parts).astype(np.int32)
    return Example(tokens, weights, "f.jsonl", 1, cuts, (0.0,) * len(answers), chained)


def plain(tokens: np.ndarray) -> Example:
    weights = np.zeros(len(tokens), dtype=np.float32)
    weights[-1] = 1
    return Example(tokens.astype(np.int32), weights, "f.jsonl", 1)


def pairs(seed: int = 5) -> list[Example]:
    rng = np.random.default_rng(seed)
    lengths = ((9, 6, 13), (3, 11, 1), (20, 2, 4))
    return [tree(*split([rng.integers(3, VOCABULARY, length) for length in each])) for each in lengths]


def split(parts: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    return parts[0], parts[1:]


def separate(example: Example) -> list[Example]:
    """Every answer after its own copy of what stands before it."""
    ends = [*example.cuts[1:], len(example)]
    prompt = example.tokens[: example.cuts[0]]
    if example.chained:
        return [plain(example.tokens[:end]) for end in ends]
    spans = zip(example.cuts, ends, strict=True)
    return [plain(np.concatenate([prompt, example.tokens[start:end]])) for start, end in spans]


def padded_logits(model: PreTrainedModel, rows: list[np.ndarray]) -> torch.Tensor:
    """Transformers' own classifier on a padded batch."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.from_numpy(row)
        mask[index, : len(row)] = 1
    return model(input_ids=ids, attention_mask=mask).logits
