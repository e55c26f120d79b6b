"""The `model` part of a recipe."""

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.config import Config


class FullConfig(Config):
    """Train every weight."""

    method: Literal["full"] = Field(default="full", description="What is trained: lora, full or freeze.")


class FreezeConfig(Config):
    """Train some layers and freeze the rest."""

    method: Literal["freeze"] = Field(default="freeze", description="What is trained: lora, full or freeze.")
    first: Annotated[int, Field(ge=0)] = Field(default=0, description="Train the first n layers.")
    last: Annotated[int, Field(ge=0)] = Field(default=0, description="Train the last n layers.")
    names: tuple[str, ...] = Field(default=(), description="Also train parameters whose name contains one of these.")


class LoraConfig(Config):
    """Low-rank adapters (arXiv:2106.09685)."""

    method: Literal["lora"] = Field(default="lora", description="What is trained: lora, full or freeze.")
    rank: Annotated[int, Field(ge=1, le=4096)] = Field(default=16, description="Rank r of the update.")
    alpha: Annotated[float, Field(gt=0)] = Field(
        default=32.0, description="Scale: alpha/r, or alpha/sqrt(r) with rslora."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Dropout on the adapter's input.")
    targets: tuple[str, ...] = Field(
        default=("all",), description="Module names to adapt; all means every linear layer but the head."
    )
    last: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Adapt the last n layers only, and leave those below as they are; 0: all layers."
    )
    rslora: bool = Field(default=False, description="Rank-stabilised scale (arXiv:2312.03732).")
    modules_to_save: tuple[str, ...] = Field(
        default=(), description="Modules trained in full and saved with the adapter."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Type of the adapter's master weights."
    )


Adapter = Annotated[LoraConfig | FullConfig | FreezeConfig, Field(discriminator="method")]


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
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Type of the frozen weights and the computation; auto: as stored, or fp32 on a CPU without bf16.",
    )
    base_products: Literal["exact", "int8", "fp8"] = Field(
        default="exact",
        description="Products with frozen weights while training: exact, or in 8 bits on a CPU (int8) or GPU (fp8), "
        "which is faster and not exact. What is saved goes with the exact weights.",
    )
    attention: Literal["auto", "ragged", "dense"] = Field(
        default="auto", description="ragged never multiplies across segments; dense is the masked reference."
    )
    adapter: Adapter = Field(default=LoraConfig(), description="What is trained: lora, full or freeze.")
    adapter_path: str | None = Field(default=None, description="Continue from this PEFT adapter folder.")
    reference: ReferenceConfig = Field(
        default=ReferenceConfig(), description="What preference losses compare with; other objectives have none."
    )
