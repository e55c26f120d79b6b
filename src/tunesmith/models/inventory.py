"""What a model folder holds, counted from config.json and safetensors headers; no weight is read."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError, Where
from tunesmith.models.adapter_config import (
    AdapterConfig,
    FullConfig,
    LoraConfig,
    NamedConfig,
    PlacedConfig,
    RsloraConfig,
    TargetedConfig,
)
from tunesmith.models.bottleneck_config import BottleneckConfig
from tunesmith.models.changing_config import LisaConfig
from tunesmith.models.headers import TensorInfo, read_header, read_headers
from tunesmith.models.loftq_config import LoftqConfig
from tunesmith.models.prompt_config import LearnedConfig, VirtualConfig
from tunesmith.models.safety import read_config

LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks)\.(\d+)\.")
EMBEDDING = re.compile(r"(?:^|\.)(embed_tokens|wte|word_embeddings|embed_in)\.weight\Z")
HEAD = re.compile(r"(?:^|\.)(lm_head|embed_out|output)\.weight\Z")
DEPTHS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")  # what configs call the number of layers
ADAPTER_FILE = "adapter_model.safetensors"
NETWORK_FILE = "prompt_encoder.safetensors"
WRITTEN_OUT = frozenset(["llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2"])  # model types of models/layer


@dataclass(frozen=True, slots=True)
class Inventory:
    """Sizes of a model; `tensors` holds every one that is loaded, a tied head only once.

    A model that gives values has no vocabulary projection; `value_head` are the tensors that it has instead.
    """

    folder: Path
    model_type: str
    dtype: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    max_positions: int
    stripped: tuple[str, ...]
    tensors: dict[str, TensorInfo]
    outputs: int = 0
    value_head: dict[str, TensorInfo] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Parameters, tied ones counted once."""
        return sum(info.numel for info in self.tensors.values())

    @property
    def projected(self) -> int:
        """Numbers that the head gives at a place that is read: the vocabulary, or the values."""
        return self.outputs or self.vocabulary

    @property
    def head(self) -> int:
        """Parameters multiplied by the vocabulary projection, tied or not, or by the head of values."""
        return sum(info.numel for info in self.value_head.values()) if self.outputs else self.hidden * self.vocabulary

    @property
    def body(self) -> int:
        """Parameters of the linear layers between embedding and head."""
        return sum(info.numel for name, info in self.tensors.items() if is_linear(name, info))

    @property
    def query(self) -> int:
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        return self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Trainable:
    """What one tuning method trains: parameters of adapters, of the base model, and in which layers backward runs.

    `shapes` are those of every trained tensor by name; a method that does not tell them has none. `resting` are those
    of the parameters that are not trained in the same step as the others, and they have no part in `shapes`. `rows`
    is how many new tokens have rows of the embedding, and of the head, that are trained alone.
    """

    adapters: int
    base: int
    lowest_layer: int
    head: bool
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    resting: int = 0
    rows: int = 0

    @property
    def total(self) -> int:
        return self.adapters + self.base

    @property
    def at_once(self) -> int:
        """Parameters that one step trains."""
        return self.total - self.resting


def take_inventory(folder: Path, outputs: int = 0, tensors: dict[str, TensorInfo] | None = None) -> Inventory:
    """Read config and headers; with `outputs` of the model that gives so many values.

    `tensors` are those of a folder that has no weights yet.

    Raises ModelError E084 when config.json lacks a size, E240 or E241 when the model cannot give the values.
    """
    config, stripped = read_config(folder)
    text = config.get("text_config")
    sizes = {**config, **text} if isinstance(text, dict) else config
    tensors = read_headers(folder) if tensors is None else tensors
    value_head: dict[str, TensorInfo] = {}
    if outputs:
        from tunesmith.models.heads import describe_classifier

        tensors, value_head, own_sizes = describe_classifier(folder, config, outputs, tensors)
        sizes = {**own_sizes, **sizes}
    if sizes.get("tie_word_embeddings", config.get("tie_word_embeddings", False)) and any(
        map(EMBEDDING.search, tensors)
    ):
        tensors = {name: info for name, info in tensors.items() if not HEAD.search(name)}
    path = folder / "config.json"
    hidden, heads = size_of(sizes, "hidden_size", path), size_of(sizes, "num_attention_heads", path)
    layers = size_of(sizes, "num_hidden_layers", path)
    check_layers(sizes, tensors, folder)
    check_vocabulary(sizes, tensors, folder)
    return Inventory(
        folder=folder,
        model_type=str(sizes.get("model_type")),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=size_of(sizes, "num_key_value_heads", path, heads),
        head_dim=size_of(sizes, "head_dim", path, hidden // heads),
        intermediate=size_of(sizes, "intermediate_size", path, 4 * hidden),
        vocabulary=size_of(sizes, "vocab_size", path),
        max_positions=size_of(sizes, "max_position_embeddings", path, 2**31),
        stripped=stripped,
        tensors=tensors,
        outputs=outputs,
        value_head=value_head,
    )


def size_of(sizes: dict[str, Any], key: str, path: Path, default: int | None = None) -> int:
    value = sizes.get(key)
    value = default if value is None else value
    if type(value) is not int or not 0 < value < 2**40:
        shown = "is missing" if value is None else f"is {str(value)[:40]!r}"
        raise ModelError("E084", f"{key} {shown}; want a number above 0", where=Where(str(path), field=key))
    return value


def check_layers(sizes: Mapping[str, Any], tensors: Iterable[str], folder: Path) -> None:
    """ModelError E081 when the weights hold another number of layers than config.json says."""
    inner = sizes.get("text_config")
    sizes = {**sizes, **inner} if isinstance(inner, dict) else sizes
    layers = next((sizes[key] for key in DEPTHS if isinstance(sizes.get(key), int)), None)
    numbers = {int(match[1]) for name in tensors if (match := LAYER.search(name))}
    found = 1 + max(numbers, default=-1)
    if numbers and layers is not None and found != layers:
        raise ModelError(
            "E081",
            f"config.json says {layers} layers, the weights hold {found}",
            where=Where(str(folder), field="num_hidden_layers"),
            fixes=["check that config.json and the safetensors files come from the same model"],
        )


def check_vocabulary(sizes: Mapping[str, Any], tensors: Mapping[str, TensorInfo], folder: Path) -> None:
    """ModelError E081 when the embedding has another number of rows than config.json says."""
    said = sizes.get("vocab_size")
    for name, info in tensors.items():
        if EMBEDDING.search(name) and len(info.shape) == 2 and isinstance(said, int) and info.shape[0] != said:
            raise ModelError(
                "E081",
                f"config.json says {said:,} tokens, the embedding has {info.shape[0]:,} rows",
                where=Where(str(folder / "config.json"), field="vocab_size"),
                evidence=[f"{name}: {list(info.shape)}"],
                fixes=[f'write "vocab_size": {info.shape[0]} there, if the tokenizer has no more tokens than that'],
            )


def is_linear(name: str, info: TensorInfo) -> bool:
    """A weight matrix of a layer; embeddings, norms and the head are none."""
    return len(info.shape) == 2 and name.endswith(".weight") and LAYER.search(name) is not None


def trainable(inventory: Inventory, adapter: AdapterConfig, adapter_folder: Path | None = None) -> Trainable:
    """Parameters that `adapter` trains; an adapter that is continued is counted from its own file."""
    if adapter_folder is not None:
        network = adapter_folder / NETWORK_FILE  # what forms a learned prompt, where the folder holds it
        held = read_header(network if network.exists() else adapter_folder / ADAPTER_FILE)
        stored = {name: info for name, info in held.items() if not any(part in name for part in adapter.frozen_keys)}
        lowest = 0 if isinstance(adapter, VirtualConfig) else _lowest(stored)
        return Trainable(sum(info.numel for info in stored.values()), 0, lowest, False, _shapes(stored))
    if isinstance(adapter, PlacedConfig):
        return _placed(inventory, adapter)
    if isinstance(adapter, LearnedConfig):
        shapes = adapter.shapes(inventory)
        return Trainable(sum(map(math.prod, shapes.values())), 0, adapter.lowest(inventory.layers), False, shapes)
    assert isinstance(adapter, NamedConfig), "other methods train weights by name"
    return _named(inventory, adapter)


def _placed(inventory: Inventory, adapter: PlacedConfig) -> Trainable:
    targeted = targets_of(inventory, adapter)
    beside = sum(adapter.count(name, *shape) for name, shape in targeted.items())
    saved = [name for name in inventory.tensors if _is_module(name, adapter.saved)]
    saved += [name for name in inventory.value_head if name not in saved]
    copies = sum(inventory.tensors[name].numel for name in saved)
    tied_head = not inventory.outputs and (any(map(HEAD.search, saved)) or "lm_head" in adapter.saved)
    shapes = _shapes({name: inventory.tensors[name] for name in saved})
    if tied_head and not any(map(HEAD.search, saved)):
        copies += inventory.head
        shapes["lm_head.weight"] = (inventory.vocabulary, inventory.hidden)
    pairs = _pairs(adapter, targeted)
    return Trainable(beside, copies, _lowest([*targeted, *saved]), tied_head, {**shapes, **pairs} if pairs else {})


def _pairs(adapter: PlacedConfig, targeted: dict[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of A and B of plain low-rank adapters; of other methods only the count is known beforehand."""
    if not isinstance(adapter, LoraConfig | RsloraConfig | LoftqConfig):
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (outputs, inputs) in targeted.items():
        stem = name.removesuffix(".weight")
        shapes |= {f"{stem}.lora_A.weight": (adapter.rank, inputs), f"{stem}.lora_B.weight": (outputs, adapter.rank)}
    return shapes


def _shapes(tensors: dict[str, TensorInfo]) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in tensors.items()}


def targets_of(inventory: Inventory, adapter: PlacedConfig) -> dict[str, tuple[int, int]]:
    """Names and shapes (outputs, inputs) of the weights that the adapter changes or stands behind."""
    targeted = [name for name, info in inventory.tensors.items() if _is_adapted(name, info, adapter)]
    if adapter.last:
        first = inventory.layers - adapter.last
        targeted = [name for name in targeted if (match := LAYER.search(name)) and int(match[1]) >= first]
    shapes = {name: inventory.tensors[name].shape for name in targeted}
    return {name: (shape[0], shape[1]) for name, shape in shapes.items()}


def _is_adapted(name: str, info: TensorInfo, adapter: PlacedConfig) -> bool:
    if isinstance(adapter, BottleneckConfig):
        return is_linear(name, info) and adapter.changes(name.removesuffix(".weight"))
    return isinstance(adapter, TargetedConfig) and is_target(name, info, adapter.targets)


def is_target(name: str, info: TensorInfo, targets: tuple[str, ...]) -> bool:
    """Whether the tensor is the weight matrix of a module that is meant."""
    if len(info.shape) != 2 or not name.endswith(".weight"):
        return False
    return is_linear(name, info) if targets == ("all",) else _is_module(name, targets)


def _is_module(name: str, modules: tuple[str, ...]) -> bool:
    module = name.removesuffix(".weight").removesuffix(".bias")
    return any(module == wanted or module.endswith(f".{wanted}") for wanted in modules)


def _named(inventory: Inventory, adapter: NamedConfig) -> Trainable:
    if isinstance(adapter, LisaConfig):
        return _drawn(inventory, adapter)
    if isinstance(adapter, FullConfig):
        return Trainable(0, inventory.total, 0, True, _shapes(inventory.tensors))
    chosen = []
    for name in inventory.tensors:
        match = LAYER.search(name)
        layer = int(match[1]) if match else None
        if name in inventory.value_head or adapter.trains(name, layer, inventory.layers):
            chosen.append(name)
    shapes = _shapes({name: inventory.tensors[name] for name in chosen})
    count = sum(map(math.prod, shapes.values()))
    return Trainable(0, count, _lowest(chosen), any(HEAD.search(name) for name in chosen), shapes)


def _drawn(inventory: Inventory, adapter: LisaConfig) -> Trainable:
    """Everything, of which one step trains what is in no layer and the largest layers that may be drawn together."""
    sizes: Counter[int] = Counter()
    for name, info in inventory.tensors.items():
        if match := LAYER.search(name):
            sizes[int(match[1])] += info.numel
    drawn = {layer for layer, _ in sizes.most_common(adapter.layers)}
    shapes = {
        name: info.shape
        for name, info in inventory.tensors.items()
        if (match := LAYER.search(name)) is None or int(match[1]) in drawn
    }
    return Trainable(0, inventory.total, 0, True, shapes, inventory.total - sum(map(math.prod, shapes.values())))


def _lowest(names: Iterable[str]) -> int:
    """The lowest layer with something to train; 0 when the embedding is among them."""
    layers = []
    for name in names:
        match = LAYER.search(name)
        if match:
            layers.append(int(match[1]))
        elif EMBEDDING.search(name):
            layers.append(0)
    return min(layers, default=10**6)
