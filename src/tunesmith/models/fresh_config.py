"""A model that is described instead of loaded: its sizes, where its norms stand, and how its weights begin."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field

from tunesmith.config import Config

Place = Literal["pre", "sandwich", "post"]
Size = Annotated[int, Field(ge=1, le=1 << 20)]
MULTIPLE = 64  # of the width of an MLP that is not said


class Architecture(NamedTuple):
    """A family of models as it matters here: its norms, and what its forward pass does to embeddings and gains."""

    word: str
    model_type: str  # as transformers names it
    norms: Place
    qk_norm: bool
    behind: tuple[str, ...] = ()  # norms behind the halves of a layer
    centred: bool = False  # a gain is 1 + weight
    scales: bool = False  # embeddings are multiplied by the root of their width


BEHIND = ("post_attention_layernorm", "post_feedforward_layernorm")
ARCHITECTURES = (  # the first that has what is wanted is taken
    Architecture("llama", "llama", "pre", qk_norm=False),
    Architecture("qwen3", "qwen3", "pre", qk_norm=True),
    Architecture("gemma3", "gemma3_text", "sandwich", qk_norm=True, behind=BEHIND, centred=True, scales=True),
    Architecture("gemma2", "gemma2", "sandwich", qk_norm=False, behind=BEHIND, centred=True, scales=True),
    Architecture("olmo2", "olmo2", "post", qk_norm=True, behind=BEHIND),
)


class FreshConfig(Config):
    """A new model with random weights."""

    rates: ClassVar[tuple[float, float]] = (1e-5, 1e-2)  # learning rates between which nothing is remarkable
    usual_rate: ClassVar[tuple[str, float]] = ("1e-4 to 3e-3", 1e-3)

    architecture: Literal["auto", "llama", "qwen3", "gemma2", "gemma3", "olmo2"] = Field(
        default="auto", description="auto: the one that norms and qk_norm describe; nothing said: llama."
    )
    norms: Literal["auto", "pre", "sandwich", "post"] = Field(
        default="auto",
        description="Where the norms of a layer stand: before its halves (llama, qwen3), before and behind them "
        "(gemma2, gemma3), behind them (olmo2).",
    )
    qk_norm: bool | None = Field(
        default=None,
        description="Norm queries and keys, which bounds the scores of attention (qwen3, gemma3, olmo2); empty: as "
        "the architecture has it.",
    )
    layers: Annotated[int, Field(ge=1, le=1024)] = Field(default=12, description="Decoder layers.")
    hidden: Size = Field(default=768, description="Width of the states between layers.")
    heads: Size = Field(default=12, description="Heads of attention.")
    kv_heads: Size | None = Field(
        default=None, description="Heads of keys and values, which several query heads share; empty: as many as heads."
    )
    head_dim: Size | None = Field(default=None, description="Width of a head; empty: hidden / heads.")
    intermediate: Size | None = Field(
        default=None, description="Width inside the MLP; empty: 8/3 of hidden, up to a multiple of 64."
    )
    max_positions: Size = Field(default=2048, description="Positions that the model is made for.")
    rope_base: Annotated[float, Field(gt=1)] = Field(
        default=10000.0, description="Base of the rotary positions; larger for longer texts, such as 500000 for 8k."
    )
    tied_embeddings: bool = Field(default=False, description="One matrix for the embedding and the head.")
    tokenizer: str = Field(
        default="starter",
        description="Where the tokenizer comes from, and with it the vocabulary and chat template: starter, a folder "
        "with a tokenizer.json, a model, or a hub id.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = Field(
        default=None, description="Seed of the weights; empty: train.seed."
    )
    std: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Deviation of the weights; empty: the root of 2 / (5 hidden) (arXiv:1910.05895)."
    )
    residual: Literal["scaled", "plain"] = Field(
        default="scaled",
        description="scaled: what a layer adds to the residual stream is 1 / sqrt(2 layers) as large, by its output "
        "matrices, or by the gain of the norms behind them (arXiv:2504.07866); plain: as all others.",
    )
    embedding: Literal["unit", "plain"] = Field(
        default="unit",
        description="unit: embeddings begin so large that the residual stream has a variance of 1 (arXiv:2312.16903); "
        "plain: of the deviation of all other weights, as tied embeddings need it.",
    )

    @property
    def found(self) -> Architecture | None:
        """The first architecture that is what is said, None where there is none."""
        return next((each for each in ARCHITECTURES if self.fits(each)), None)

    def fits(self, each: Architecture) -> bool:
        return self.architecture in ("auto", each.word) and self.agreement(each) == (True, True)

    def agreement(self, each: Architecture) -> tuple[bool, bool]:
        """Whether its norms stand where they are wanted, and whether queries and keys are normed as wanted."""
        return self.norms in ("auto", each.norms), self.qk_norm in (None, each.qk_norm)

    @property
    def nearest(self) -> Architecture:
        """The architecture that is most of what is said; where norms stand weighs more than what they are of."""
        return max(ARCHITECTURES, key=lambda each: self.agreement(each))

    @property
    def kind(self) -> Architecture:
        assert self.found is not None, "what no architecture has is refused before"
        return self.found

    @property
    def key_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def width(self) -> int:
        """Of a head."""
        return self.hidden // self.heads if self.head_dim is None else self.head_dim

    @property
    def inside(self) -> int:
        """Width inside the MLP."""
        return MULTIPLE * math.ceil(8 * self.hidden / 3 / MULTIPLE) if self.intermediate is None else self.intermediate

    @property
    def deviation(self) -> float:
        return math.sqrt(2 / (5 * self.hidden)) if self.std is None else self.std

    def told(self) -> str:
        """The sizes in a line."""
        heads = f"{self.heads} heads" if self.key_heads == self.heads else f"{self.heads} heads on {self.key_heads}"
        tied = ", tied embeddings" if self.tied_embeddings else ""
        return (
            f"{self.kind.word}: {self.layers} layers of {self.hidden}, {heads} of {self.width}, MLP {self.inside}{tied}"
        )

    def told_beginning(self, seed: int) -> str:
        """How its weights begin, in a line."""
        added = {"scaled": f", what layers add / sqrt({2 * self.layers})", "plain": ""}[self.residual]
        stream = {"unit": ", a residual stream of variance 1", "plain": ""}[self.embedding]
        return f"normal with a deviation of {self.deviation:.4g}{added}{stream}; seed {seed}"
