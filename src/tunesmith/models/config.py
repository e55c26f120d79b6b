"""The `model` part of a recipe."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from tunesmith.config import Config
from tunesmith.models.adalora_config import AdaloraConfig
from tunesmith.models.adapter_config import (
    METHOD,
    BitfitConfig,
    DoraConfig,
    FreezeConfig,
    FullConfig,
    Ia3Config,
    LoraConfig,
    LoraFaConfig,
    NormsConfig,
    OloraConfig,
    PissaConfig,
    RsloraConfig,
    VeraConfig,
)
from tunesmith.models.bottleneck_config import BottleneckConfig
from tunesmith.models.changing_config import LisaConfig
from tunesmith.models.fresh_config import FreshConfig
from tunesmith.models.loftq_config import LoftqConfig
from tunesmith.models.orthogonal_config import BoftConfig, OftConfig
from tunesmith.models.prompt_config import LlamaAdapterConfig, PrefixConfig, PromptConfig, PTuningConfig
from tunesmith.models.quantization_config import Quantization, Unquantized
from tunesmith.vocabulary import NewTokens

Adapter = Annotated[
    LoraConfig
    | RsloraConfig
    | DoraConfig
    | PissaConfig
    | OloraConfig
    | LoraFaConfig
    | AdaloraConfig
    | LoftqConfig
    | Ia3Config
    | VeraConfig
    | OftConfig
    | BoftConfig
    | BottleneckConfig
    | PromptConfig
    | PTuningConfig
    | PrefixConfig
    | LlamaAdapterConfig
    | FullConfig
    | LisaConfig
    | FreezeConfig
    | BitfitConfig
    | NormsConfig,
    Field(discriminator="method"),
]


class ReferenceConfig(Config):
    """The frozen model that preference losses compare with."""

    source: Literal["auto", "start", "adapter_off", "path"] = Field(
        default="auto",
        description="start: the model as loaded, its adapter included; adapter_off: the base model below the adapter; "
        "path: another one; auto: start, by the cheapest way that is exact.",
    )
    path: str | None = Field(default=None, description="Folder, .gguf file or hub id of the reference model.")
    update_every: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Steps after which the reference moves towards the policy (arXiv:2404.09656); 0: never."
    )
    update_mix: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Share of the policy in the moved reference; empty: 0.6, or 1 (replaced) with LoRA."
    )


class ModelConfig(Config):
    path: str = Field(default="starter", description="starter, a local folder, a .gguf file, or a hub id (owner/name).")
    revision: str | None = Field(default=None, description="Hub commit or tag.")
    fresh: FreshConfig | None = Field(
        default=None, description="A new model with random weights, described instead of loaded; empty: none."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Type of the weights and the computation; auto: as stored (bf16 for fp16), or fp32 on a CPU "
        "without bf16. float16 is for GPUs without bf16.",
    )
    base_products: Literal["exact", "int8", "fp8"] = Field(
        default="exact",
        description="Products with frozen weights while training: exact, or in 8 bits on a CPU (int8) or GPU (fp8), "
        "which is faster and not exact. What is saved goes with the exact weights.",
    )
    quantization: Quantization = Field(
        default=Unquantized(),
        description="Hold the frozen linear layers in few bits; embeddings, head and norms stay in the model's type. "
        "base_products is about the arithmetic, and goes with exact weights.",
    )
    attention: Literal["auto", "ragged", "dense"] = Field(
        default="auto", description="ragged never multiplies across segments; dense is the masked reference."
    )
    adapter: Adapter = Field(default=LoraConfig(), description=METHOD)
    adapter_path: str | None = Field(default=None, description="Continue from this PEFT adapter folder.")
    merged_adapters: tuple[str, ...] = Field(
        default=(),
        description="Adapter folders or runs that are merged into the model as it is loaded, in this order; "
        "what is trained goes above them.",
    )
    new_tokens: tuple[str, ...] = Field(
        default=(),
        description="Tokens to add to the tokenizer, such as <|call|>; their rows alone are trained, beside LoRA, "
        "rsLoRA or DoRA. Where records hold their text it is the token.",
    )
    new_tokens_begin: Literal["pieces", "mean"] = Field(
        default="pieces",
        description="What rows of new tokens begin as: pieces: the mean of the tokens that each was spelt with; "
        "mean: the mean of all.",
    )
    reference: ReferenceConfig = Field(
        default=ReferenceConfig(), description="What preference losses compare with; other objectives have none."
    )

    @property
    def named(self) -> str:
        """A word for where it comes from."""
        return Path(self.path).name if self.fresh is None else f"fresh-{self.fresh.kind.word}"

    @property
    def added(self) -> NewTokens:
        return NewTokens(self.new_tokens, self.new_tokens_begin)
