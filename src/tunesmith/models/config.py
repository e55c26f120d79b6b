"""The `model` part of a recipe."""

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.config import Config


class FullConfig(Config):
    """Train every weight."""

    method: Literal["full"] = "full"


class FreezeConfig(Config):
    """Train some layers and freeze the rest."""

    method: Literal["freeze"] = "freeze"
    first: Annotated[int, Field(ge=0)] = Field(0, description="Train the first n layers.")
    last: Annotated[int, Field(ge=0)] = Field(0, description="Train the last n layers.")
    names: tuple[str, ...] = Field((), description="Also train parameters whose name contains one of these.")


class LoraConfig(Config):
    """Low-rank adapters (arXiv:2106.09685)."""

    method: Literal["lora"] = "lora"
    rank: Annotated[int, Field(ge=1, le=4096)] = Field(16, description="Rank r of the update.")
    alpha: Annotated[float, Field(gt=0)] = Field(32.0, description="Scale: alpha/r, or alpha/sqrt(r) with rslora.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Dropout on the adapter's input.")
    targets: tuple[str, ...] = Field(
        ("all",), description="Module names to adapt; all means every linear layer but the head."
    )
    rslora: bool = Field(False, description="Rank-stabilised scale (arXiv:2312.03732).")
    modules_to_save: tuple[str, ...] = Field((), description="Modules trained in full and saved with the adapter.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Type of the adapter's master weights.")


Adapter = Annotated[LoraConfig | FullConfig | FreezeConfig, Field(discriminator="method")]


class ModelConfig(Config):
    path: str = Field("starter", description="starter, a local folder, a .gguf file, or a hub id (owner/name).")
    revision: str | None = Field(None, description="Hub commit or tag.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Type of the frozen weights and of the computation; auto is the checkpoint's own."
    )
    attention: Literal["auto", "ragged", "dense"] = Field(
        "auto", description="ragged never multiplies across segments; dense is the masked reference."
    )
    adapter: Adapter = Field(LoraConfig(), description="What is trained: lora, full or freeze.")
    adapter_path: str | None = Field(None, description="Continue from this PEFT adapter folder.")
