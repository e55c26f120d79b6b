"""Peak memory from sizes alone, and how many layers must be recomputed to stay below what is free."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from tunesmith.models.config import Adapter, LoraConfig
from tunesmith.models.inventory import Inventory, Trainable

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of one number; other names count as bfloat16
USABLE = 0.9  # share of the free memory that a plan may promise
HEAD_ROWS = 256  # rows of the vocabulary projection alive at once
ATTENTION_ROWS = 256  # rows of attention probabilities alive at once

# Measured on whole processes, not derived (a nightly test compares plan and peak); the CUDA column is an estimate.
BASELINE = {"cpu": 920e6, "cuda": 600e6}  # without a model: libraries and kernels per shape; the CUDA context
SLACK = {"cpu": 1.22, "cuda": 1.05}  # what the allocator takes per byte that is kept
PASSING = {"cpu": 4.0, "cuda": 2.0}  # results that one layer's passes drop again, in units of what a layer keeps

# Norms of a layer that keep an fp32 copy of the hidden state, where it is not two; models that norm queries and keys.
NORMS = {"gemma2": 4, "gemma3": 4, "gemma3_text": 4}
FUSED = frozenset(["llama", "mistral", "qwen2", "qwen3", "smollm3"])  # norms and gated layers of models/fused.py
NORMED_QUERIES = frozenset(["qwen3", "gemma3", "gemma3_text", "olmo2"])


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the peak of a step; `other` is the process without the model."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    other: int

    @property
    def peak(self) -> int:
        return sum(asdict(self).values())

    def to_json(self) -> dict[str, int]:
        return {**asdict(self), "peak": self.peak}


@dataclass(frozen=True, slots=True)
class Load:
    """What decides the peak besides the model: tokens and the longest document of one forward pass, and the machine."""

    tokens: int
    longest: int
    dtype: str
    device: str = "cpu"
    dense: bool = False  # attention under one mask over the whole microbatch


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes that activations take: per token and layer with and without recomputation, and once whatever happens."""

    kept: float
    recomputed: float
    passing: float  # per token, whatever is recomputed
    once: float
    layers: int  # that the backward pass goes through

    def total(self, tokens: int, checkpointed: int) -> int:
        """With the `checkpointed` lowest of those layers recomputed."""
        again = min(checkpointed, self.layers)
        per_token = (self.layers - again) * self.kept + again * self.recomputed + self.passing
        return round(tokens * per_token + self.once)


def compute_type(inventory: Inventory, wanted: str) -> str:
    """The type of weights and computation that a run would use."""
    if wanted != "auto":
        return wanted
    return inventory.dtype if inventory.dtype in ("float32", "bfloat16") else "bfloat16"


def estimate(inventory: Inventory, trained: Trainable, adapter: Adapter, load: Load, checkpointed: int = 0) -> Memory:
    """Peak of training with AdamW: fp32 gradients and moments, and fp32 masters of what is trained below fp32."""
    width = WIDTH.get(load.dtype, 2)
    adapter_width = 2 if isinstance(adapter, LoraConfig) and adapter.dtype == "bfloat16" and width == 2 else 4
    masters = 4 * (trained.base if width < 4 else 0) + 4 * (trained.adapters if adapter_width < 4 else 0)
    sizes = activation_sizes(inventory, trained, adapter, load)
    copies = trained.base if trained.adapters else 0  # modules trained in full beside an adapter
    return Memory(
        weights=width * (inventory.total + copies),
        adapters=adapter_width * trained.adapters,
        gradients=4 * trained.total,
        optimizer=8 * trained.total + masters,
        activations=sizes.total(load.tokens, checkpointed),
        head=head_bytes(inventory, trained, width),
        other=round(BASELINE[load.device]),
    )


def activation_sizes(inventory: Inventory, trained: Trainable, adapter: Adapter, load: Load) -> Sizes:
    """What modules keep for the backward pass around ragged attention and the fast LoRA linear."""
    width = WIDTH.get(load.dtype, 2)
    hidden, query, key = inventory.hidden, inventory.query, inventory.key
    fused = inventory.model_type in FUSED
    norms = NORMS.get(inventory.model_type, 2)
    kept = float(norms * hidden * (width if fused else 4))  # the input of a norm, plain ones in fp32
    if inventory.model_type in NORMED_QUERIES and not fused:
        kept += 4 * (query + key)
    kept += 2 * width * hidden  # inputs of the attention's and the MLP's first projections
    kept += 2 * width * (query + key)  # queries, keys, values and the output of attention
    kept += (3 if fused else 4) * width * inventory.intermediate  # gate, up, their product; plain ones silu(gate) too
    if isinstance(adapter, LoraConfig):
        kept += 7 * width * adapter.rank
    else:
        kept += 2 * width * hidden  # a trained norm keeps its input as well
    if load.dense:
        kept += (4 + width) * inventory.heads * load.tokens
    slack = SLACK[load.device]
    once = 4 * width * inventory.heads * ATTENTION_ROWS * load.longest if load.device == "cpu" else 0
    layers = max(0, inventory.layers - trained.lowest_layer)
    return Sizes(slack * kept, slack * width * hidden, PASSING[load.device] * kept, once, layers)


def head_bytes(inventory: Inventory, trained: Trainable, width: int) -> int:
    """Logits of one chunk of rows, and the gradient of a trained head in the computing type."""
    chunk = 2 * HEAD_ROWS * inventory.projected * width
    return chunk + (width * inventory.head if trained.head else 0)


def layers_to_checkpoint(sizes: Sizes, tokens: int, room: float) -> int | None:
    """The fewest lowest layers to recompute so that activations fit into `room` bytes; None when all are not enough."""
    for count in range(sizes.layers + 1):
        if sizes.total(tokens, count) <= room:
            return count
    return None
