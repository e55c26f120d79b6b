"""Peak memory from sizes alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from tunesmith.models.adapter_config import (
    AdapterConfig,
    LoraConfig,
    LoraFaConfig,
    LowRankConfig,
    PlacedConfig,
    RsloraConfig,
)
from tunesmith.models.fp8_config import Fp8Config
from tunesmith.models.head import CHUNK
from tunesmith.models.inventory import WRITTEN_OUT, Inventory, Trainable, targets_of
from tunesmith.models.loftq_config import LoftqConfig
from tunesmith.models.policy import Checkpointing
from tunesmith.models.prompt_config import LearnedConfig
from tunesmith.models.quantization_config import QuantizationConfig, Unquantized
from tunesmith.planning.fp8 import passing_bytes
from tunesmith.planning.quantized import weight_bytes
from tunesmith.train.holding import Rounding
from tunesmith.train.optimizers import AdamW, OptimizerConfig
from tunesmith.train.optimizers.paging import Shapes, paged_bytes, resident_bytes

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of one number; other names count as bfloat16
MASTERS = {"masters": 4, "stochastic": 0, "kahan": 2}  # bytes beside each trained number below fp32
WIDENED = 12  # bytes of a number while a weight without a master is updated and rounded: fp32, chance, result
USABLE = 0.9  # share of the free memory that a plan may promise
HEAD = 4096  # rows, and words of the vocabulary, whose logits are alive at once
PAIRS = 2**18  # pairs of row and key whose attention is alive at once; a block of rows of a long document may be more
BLOCK = 96  # rows of such a block

# Measured on whole processes, not derived (a nightly test compares plan and peak); the CUDA column is an estimate.
BASELINE = {"cpu": 450e6, "cuda": 600e6}  # without a model: libraries; the CUDA context
SHAPES = {"cpu": 370e6, "cuda": 0}  # kernels for the numbers of rows that occur: so much from 1,024 tokens on
MAPPED = {"cpu": 130e6, "cuda": 0}  # of it: pages of the file whose matrices were laid side by side; not when packed
SLACK = {"cpu": 1.15, "cuda": 1.05}  # what the allocator takes per byte that is kept
PASSING = {"cpu": 4.0, "cuda": 2.0}  # results that one layer's passes drop again, in units of what a layer keeps

# Norms of a layer that keep an fp32 copy of the hidden state, where it is not two; models that norm queries and keys.
NORMS = {"gemma2": 4, "gemma3": 4, "gemma3_text": 4}
NORMED_QUERIES = frozenset(["qwen3", "gemma3", "gemma3_text", "olmo2"])
NORMED_AFTERWARDS = frozenset(["olmo2"])
FUSED = WRITTEN_OUT - NORMED_AFTERWARDS  # norms and gated layers of models/fused
PLAIN = (LoraConfig, RsloraConfig, LoraFaConfig, LoftqConfig)  # W + s B A as the written-out layers compute it
NOTHING = Checkpointing()
ADAMW = AdamW()
EXACT = Unquantized()


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the peak of a step; `other` is the process without the model, `trunk` cached states of frozen layers.

    `copies` are of trained weights: those at the start, and their average; and states of a reference. `paged` are
    states of the optimiser that wait outside of that memory, and no part of the peak.
    """

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    other: int
    trunk: int = 0
    copies: int = 0
    paged: int = 0

    @property
    def peak(self) -> int:
        return sum(asdict(self).values()) - self.paged

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
    in_backward: bool = False  # every gradient is used up as soon as it is complete
    optimizer: OptimizerConfig = ADAMW
    quantization: QuantizationConfig = EXACT
    fp8: Fp8Config | None = None  # products with trained weights


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes that activations take: per token and layer by policy, per token for the layer at work, and once."""

    kept: float
    selective: float
    full: float
    passing: float  # of the layer at work, whatever is formed again
    wide: float  # its gate and up, where some layer forms them again
    again: float  # what else a layer that is computed again keeps for a moment
    once: float  # not per token
    layers: int  # that the backward pass goes through

    def total(self, tokens: int, chosen: Checkpointing = NOTHING) -> int:
        """With as many of the lowest of those layers checkpointed as there are."""
        away, full = min(chosen.offloaded, self.layers), min(chosen.offloaded + chosen.full, self.layers)
        part = min(chosen.layers, self.layers)
        per_token = (self.layers - part) * self.kept + (part - full) * self.selective + (full - away) * self.full
        per_token += self.passing + self.wide * (part > 0) + self.again * (full > 0)
        per_token += 2 * self.full * (away > 0)  # one that is used and one on its way
        return round(tokens * per_token + self.once)


def compute_type(inventory: Inventory, wanted: str) -> str:
    """The type of weights and computation that a run would use."""
    if wanted != "auto":
        return wanted
    return inventory.dtype if inventory.dtype in ("float32", "bfloat16") else "bfloat16"


def estimate(
    inventory: Inventory, trained: Trainable, adapter: AdapterConfig, load: Load, chosen: Checkpointing = NOTHING
) -> Memory:
    """Peak of training: fp32 gradients, the optimiser's states, and what is kept beside weights below fp32."""
    width = WIDTH.get(load.dtype, 2)
    narrow = isinstance(adapter, PlacedConfig) and not adapter.wide and width == 2
    adapter_width = 2 if narrow else 4
    below = (trained.base - trained.resting if width < 4 else 0) + (trained.adapters if adapter_width < 4 else 0)
    rule, shapes = load.optimizer.for_heads(inventory.head_dim), shapes_of(trained)
    sizes = activation_sizes(inventory, trained, adapter, load)
    activations = sizes.total(load.tokens, chosen)
    beside = below * MASTERS[rounding_of(load)] + (widened_bytes(trained, load, activations) if below else 0)
    copies = trained.base if trained.adapters else 0  # modules trained in full beside an adapter
    joined = has_written_out(inventory, adapter, load)
    return Memory(
        weights=width * copies + weight_bytes(inventory, width, load.quantization, joined=joined),
        adapters=adapter_width * (trained.adapters + frozen_beside(inventory, adapter)),
        gradients=gradient_bytes(inventory, trained, width, load, activations),
        optimizer=resident_bytes(rule, shapes, load.device) + beside,
        activations=activations,
        head=head_bytes(inventory, trained, width, load.tokens),
        other=process_bytes(load),
        paged=paged_bytes(rule, shapes, load.device),
    )


def rounding_of(load: Load) -> Rounding:
    """Weights in fp16 have masters whatever is asked for."""
    return "masters" if load.dtype == "float16" else load.optimizer.rounding


def process_bytes(load: Load) -> int:
    """What the process takes without the model."""
    held = 0 if load.quantization == EXACT else MAPPED[load.device]
    return round(BASELINE[load.device] + SHAPES[load.device] * min(1.0, load.tokens / 1024) - held)


def widened_bytes(trained: Trainable, load: Load, activations: int) -> int:
    """The largest weight in fp32 while it is updated, where no master stays.

    After the backward pass that takes the place of activations, and counts as far as it is larger.
    """
    if rounding_of(load) == "masters":
        return 0
    largest = WIDENED * max(map(math.prod, trained.shapes.values()), default=0)
    return largest if load.in_backward else max(0, largest - activations)


def state_bytes(trained: Trainable, optimizer: OptimizerConfig) -> int:
    """What the optimiser keeps of everything trained, in memory and outside of it."""
    return sum(optimizer.state_bytes(*one) for one in shapes_of(trained).items())


def shapes_of(trained: Trainable) -> Shapes:
    """Of everything trained, by name; as of one long vector where shapes are not known."""
    return trained.shapes or {"": (trained.at_once,)}


def activation_sizes(inventory: Inventory, trained: Trainable, adapter: AdapterConfig, load: Load) -> Sizes:
    """What layers keep for the backward pass, and what passes through one of them."""
    width = WIDTH.get(load.dtype, 2)
    wide = 2 * width * inventory.intermediate
    if has_written_out(inventory, adapter, load):
        kept = width * float(values_kept(inventory, adapter))
        passing = width * float(values_passing(inventory))
        dropped = float(wide)
    elif isinstance(adapter, PlacedConfig) and not adapter.keeps_inputs:
        kept, dropped = frozen_kept(inventory, adapter, load, width), middle_kept(inventory, width)
        passing = PASSING[load.device] * kept
    else:
        kept = plain_kept(inventory, adapter, load, width)
        passing = PASSING[load.device] * kept
        dropped = 1.5 * wide if isinstance(adapter, LearnedConfig) else 2.0 * wide  # silu of gate; the product as well
    slack = SLACK[load.device]
    if isinstance(adapter, PlacedConfig) and load.device == "cpu":
        slack *= adapter.scatter
    alive = min(max(PAIRS, BLOCK * load.longest), load.tokens * load.longest)
    once = 3 * width * inventory.heads * alive if load.device == "cpu" else 0  # scores, and twice as much for slopes
    return Sizes(
        kept=slack * kept,
        selective=slack * (kept - dropped),
        full=slack * width * inventory.hidden,
        passing=passing,
        wide=wide,
        again=kept - dropped,
        once=once + passing_bytes(load.fp8, inventory, trained, load.tokens),
        layers=max(0, inventory.layers - trained.lowest_layer),
    )


def has_written_out(inventory: Inventory, adapter: AdapterConfig, load: Load) -> bool:
    """Whether the model's layers are those of models/layer."""
    return inventory.model_type in WRITTEN_OUT and not load.dense and is_written_out(adapter)


def is_written_out(adapter: AdapterConfig) -> bool:
    """Whether the layers of models/layer compute such an adapter themselves."""
    if isinstance(adapter, LearnedConfig):
        return adapter.written_out
    return not adapter.drops and (not isinstance(adapter, PlacedConfig) or type(adapter) in PLAIN)


def kept_beside(inventory: Inventory, adapter: PlacedConfig) -> float:
    """Numbers per token and layer that the adapter keeps, the mean over the layers with one."""
    if type(adapter) in PLAIN and isinstance(adapter, LowRankConfig) and not adapter.drops:
        return 7 * adapter.rank
    found = targets_of(inventory, adapter)
    layers = adapter.last or inventory.layers
    return sum(adapter.kept_for(name, *shape) for name, shape in found.items()) / max(1, min(layers, inventory.layers))


def frozen_beside(inventory: Inventory, adapter: AdapterConfig) -> int:
    """Numbers that the adapter holds and does not train."""
    if not isinstance(adapter, PlacedConfig):
        return 0
    return adapter.frozen_beside(list(targets_of(inventory, adapter).values()))


def values_kept(inventory: Inventory, adapter: AdapterConfig) -> int:
    """Numbers per token that a layer of models/layer keeps: its output, q k v, mixed values, middle, gate and up."""
    heads = inventory.query + 2 * inventory.key
    kept = 2 * inventory.hidden + heads + inventory.query + 2 * inventory.intermediate
    if inventory.model_type in NORMED_QUERIES:
        kept += heads
    if inventory.model_type in NORMED_AFTERWARDS:
        kept += 2 * inventory.hidden
    return kept + (7 * adapter.rank if isinstance(adapter, LowRankConfig) else 0)


def values_passing(inventory: Inventory) -> int:
    """Numbers per token that one layer's passes need for a moment, in scratch memory and in results."""
    heads = inventory.query + 2 * inventory.key
    return 4 * heads + 2 * inventory.query + 7 * inventory.hidden + 6 * inventory.intermediate


def plain_kept(inventory: Inventory, adapter: AdapterConfig, load: Load, width: int) -> float:
    """Bytes per token that modules of transformers keep around ragged attention and the fast LoRA linear."""
    if inventory.model_type in FUSED and isinstance(adapter, PlacedConfig):
        read = 3 * inventory.hidden + inventory.intermediate  # what goes into linear layers, once where several read it
        return frozen_kept(inventory, adapter, load, width) + width * read
    kept = 4.0 * NORMS.get(inventory.model_type, 2) * inventory.hidden  # the input of a norm, in fp32
    if inventory.model_type in NORMED_QUERIES:
        kept += 4 * (inventory.query + inventory.key)
    kept += 2 * width * inventory.hidden  # inputs of the attention's and the MLP's first projections
    kept += 2 * width * (inventory.query + inventory.key)  # queries, keys, values and the output of attention
    kept += 4 * width * inventory.intermediate  # gate, silu(gate), up, their product
    if isinstance(adapter, PlacedConfig):
        kept += width * kept_beside(inventory, adapter)
    elif isinstance(adapter, LearnedConfig):
        kept += width * adapter.kept_more(inventory)
        kept -= width * (2 * inventory.hidden + inventory.intermediate)  # frozen linear layers keep no input
    else:
        kept += 2 * width * inventory.hidden  # a trained norm keeps its input as well
    if load.dense:
        kept += (4 + width) * inventory.heads * load.tokens
    return kept


def frozen_kept(inventory: Inventory, adapter: PlacedConfig, load: Load, width: int) -> float:
    """Bytes per token that modules of transformers keep where every linear layer is frozen: no input of one is kept."""
    fused = inventory.model_type in FUSED
    kept = 2.0 * width * inventory.hidden if fused else 4.0 * NORMS.get(inventory.model_type, 2) * inventory.hidden
    if inventory.model_type in NORMED_QUERIES:
        kept += (width if fused else 4) * (inventory.query + inventory.key)
    kept += 2 * width * (inventory.query + inventory.key) + middle_kept(inventory, width)
    kept += (4 if adapter.keeps_wide else width) * kept_beside(inventory, adapter)
    if load.dense:
        kept += (4 + width) * inventory.heads * load.tokens
    return kept


def middle_kept(inventory: Inventory, width: int) -> float:
    """Bytes per token of gate and up, and of silu(gate) where the gated layer is transformers' own."""
    return (2.0 if inventory.model_type in FUSED else 3.0) * width * inventory.intermediate


def gradient_bytes(inventory: Inventory, trained: Trainable, width: int, load: Load, activations: int) -> int:
    """fp32 gradients of everything trained, or of one layer where they are used up in the backward pass.

    Last comes that of the embedding: its rows, their sum with the gradient of a tied head, and the sum in fp32.
    On a GPU the activations are gone by then, and it counts as far as it is larger; a CPU keeps their memory.
    """
    copy = 4 if width < 4 else 0
    embedded = inventory.hidden * inventory.vocabulary if trained.base >= inventory.total else 0
    last = (copy + 2 * width) * embedded
    if load.in_backward:
        layer = (copy + width) * trained.total // inventory.layers
        return layer + (last if load.device == "cpu" else max(0, last - activations))
    return 4 * trained.at_once + (last if load.device == "cpu" else 0)


def head_bytes(inventory: Inventory, trained: Trainable, width: int, tokens: int) -> int:
    """Logits and mean word of scored rows, and the gradient of a trained head in the computing type."""
    rows = min(tokens, HEAD)
    chunk = rows * (width * min(inventory.projected, HEAD) + (8 + width) * inventory.hidden)
    if trained.rows:  # logits of some rows at a time, with those of new tokens in place, and their slopes
        chunk = CHUNK * (4 * width + 12) * inventory.projected + 2 * width * rows * inventory.hidden
    return chunk + (width * inventory.head if trained.head else 0)
