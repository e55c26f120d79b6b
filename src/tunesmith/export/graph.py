"""ONNX: one graph that reads tokens after the keys and values of those before, run and compared in ONNX Runtime.

Inputs and outputs have the names that Optimum and Transformers.js know.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from tunesmith.errors import Fix, ModelError, UsageError, Where

FILE = "model.onnx"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20
Pairs = Sequence[tuple[Any, Any]]  # keys and values of each layer


def check_packages() -> None:
    """UsageError E439 where a package is missing that writes the graph or runs it."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(
            "E439",
            f"ONNX needs packages that are not installed: {', '.join(missing)}",
            where=Where("command line", field="--to"),
            fixes=[Fix("install what writes and runs it", command="pip install 'tunesmith[onnx]'")],
        )


class Step(nn.Module):
    """A model with a cache of plain tensors: what the graph computes."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: Pairs
    ) -> tuple[Any, Pairs]:
        """Logits, and the cache with the new tokens."""
        cache = DynamicCache()  # whole for layers with a window too: a mask hides what is outside
        for at, (keys, values) in enumerate(past):
            cache.update(keys, values, at)
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return found.logits, [(layer.keys, layer.values) for layer in cache.layers if isinstance(layer, DynamicLayer)]


def cache_names(lead: str, layers: int) -> list[str]:
    return [f"{lead}.{at}.{part}" for at in range(layers) for part in ("key", "value")]


def write_graph(model: PreTrainedModel, folder: Path) -> None:
    """`model.onnx` with its weights beside it; every axis but those of the model is free.

    ModelError E441 for a model that torch cannot follow through its own forward.
    """
    model.set_attn_implementation("eager")
    config, step = model.config, Step(model).eval()
    with torch.no_grad():  # the shapes of keys and values are the model's own
        begun = step(*torch.tensor([[[1]], [[1]], [[0]]]), ())[1]
    layers = len(begun)
    past = [tuple(torch.randn(2, each.shape[1], 5, each.shape[3], dtype=each.dtype) for each in pair) for pair in begun]
    example = {
        "input_ids": torch.randint(0, config.vocab_size, (2, 3)),
        "attention_mask": torch.ones(2, 8, dtype=torch.long),
        "position_ids": torch.arange(5, 8).repeat(2, 1),
        "past": past,
    }
    free = torch.export.Dim.DYNAMIC
    row = {0: free, 1: free}
    shapes = dict.fromkeys(list(example)[:3], row) | {"past": [({0: free, 2: free},) * 2] * layers}
    inputs = [*list(example)[:3], *cache_names("past_key_values", layers)]
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                step,
                (),
                kwargs=example,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=inputs,
                output_names=["logits", *cache_names("present", layers)],
                opset_version=OPSET,
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        raise not_followed(config.model_type, error) from error
    assert program is not None
    program.save(folder / FILE, external_data=True)


def not_followed(architecture: str, error: Exception) -> ModelError:
    return ModelError(
        "E441",
        f"the architecture {architecture!r} has no form in ONNX: torch cannot follow its forward",
        where=Where("config.json", field="model_type"),
        evidence=[line for line in str(error).splitlines() if line.strip()][:5],
        fixes=[Fix("write the model folder", command="tunesmith export MODEL OUT")],
    )


@dataclass(frozen=True, slots=True)
class Graph:
    """The file in ONNX Runtime, on the CPU."""

    session: Any
    layers: int

    @classmethod
    def of(cls, folder: Path) -> Graph:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(folder / FILE), options, providers=["CPUExecutionProvider"])
        return cls(session, (len(session.get_outputs()) - 1) // 2)

    def empty(self) -> list[np.ndarray]:
        """A cache that holds nothing."""
        found = [each for each in self.session.get_inputs() if each.name.startswith("past_key_values.")]
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        return [np.zeros((1, each.shape[1], 0, each.shape[3]), kinds[each.type]) for each in found]

    def step(self, ids: Sequence[int], past: list[np.ndarray]) -> tuple[Float[Tensor, "T V"], list[np.ndarray]]:
        """Logits of a row that goes on from `past`, and the cache with it."""
        before = past[0].shape[2]
        feed = {
            "input_ids": np.array([list(ids)]),
            "attention_mask": np.ones((1, before + len(ids)), np.int64),
            "position_ids": np.arange(before, before + len(ids))[None],
            **dict(zip(cache_names("past_key_values", self.layers), past, strict=True)),
        }
        taken = {each.name for each in self.session.get_inputs()}
        logits, *present = self.session.run(None, {name: value for name, value in feed.items() if name in taken})
        return torch.from_numpy(logits[0]).float(), present

    def logits(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "K V"]:
        """Each row at once."""
        return torch.cat([self.step(row, self.empty())[0] for row in rows])

    def logits_by_token(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "K V"]:
        """Each row one token after another, through the cache."""
        found: list[Tensor] = []
        for row in rows:
            past = self.empty()
            for token in row:
                logits, past = self.step([token], past)
                found.append(logits)
        return torch.cat(found)
