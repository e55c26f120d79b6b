"""The settings of methods that train other parameters as a run goes on."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tunesmith.models.adapter_config import METHOD, FullConfig


class LisaConfig(FullConfig):
    """Full tuning of a few layers at a time, drawn by chance, and of everything outside layers (arXiv:2403.17919)."""

    title: ClassVar[str] = "LISA"
    paper: ClassVar[str] = "arXiv:2403.17919"
    method: Literal["lisa"] = Field(default="lisa", description=METHOD)  # pyright: ignore[reportIncompatibleVariableOverride]
    layers: Annotated[int, Field(ge=1)] = Field(default=2, description="How many layers are trained at a time.")
    every: Annotated[int, Field(ge=1)] = Field(default=20, description="Steps after which others are drawn.")

    def told(self) -> str:
        return f"LISA: train {self.layers} layers drawn anew every {self.every} steps, embeddings, last norm and head"
