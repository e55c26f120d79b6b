"""The settings of every way to tune a model, and what each one trains, told from the shapes of weights alone.

Here no library is needed: recipes, plans and pages read these classes. How a method is attached stands in
`models/adapters`, one file per method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tunesmith.config import Config

METHOD = "How the model is tuned."
NORM_WORDS = ("norm", "ln_1", "ln_2", "ln_f")  # parts of the names of norms


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why a linear layer cannot be adapted, and the field that it is about."""

    code: str
    reason: str
    field: str


class AdapterConfig(Config):
    """What all ways have in common: figures and words that plans, checks and pages read."""

    title: ClassVar[str]
    paper: ClassVar[str] = ""
    kept: ClassVar[Literal["adapter", "model"]] = "adapter"  # what a run leaves: a PEFT folder, or the whole model
    reads_weights: ClassVar[bool] = False  # whether a pass reads the frozen weights themselves, not just products
    rates: ClassVar[tuple[float, float]] = (2e-5, 2e-3)  # learning rates between which nothing is remarkable
    usual_rate: ClassVar[tuple[str, float]] = ("1e-4 to 5e-4", 2e-4)
    frozen_keys: ClassVar[tuple[str, ...]] = ()  # parts of the names of tensors in its files that are not trained
    averages: ClassVar[int] = 0  # numbers kept beside each trained one from step to step, but for the optimiser's
    merges: ClassVar[bool] = True  # whether weights of the model can be changed to do what the adapter does

    @property
    def word(self) -> str:
        """The word by which a recipe names it."""
        return type(self).model_fields["method"].default

    @property
    def drops(self) -> float:
        """The share of its input that is dropped by chance while training."""
        return 0.0

    @property
    def saved(self) -> tuple[str, ...]:
        """Modules that are trained in full beside an adapter."""
        return ()

    def told(self) -> str:
        """One line for a plan."""
        return self.title


class PlacedConfig(AdapterConfig):
    """A method that adds to linear layers one by one; the shapes are those of torch, (outputs, inputs)."""

    keeps_inputs: ClassVar[bool] = True  # whether the backward pass reads again what goes into those layers
    keeps_wide: ClassVar[bool] = False  # whether what it keeps is fp32 whatever the model's type is
    scatter: ClassVar[float] = (
        1.0  # what short-lived figures between those kept cost on a CPU: holes in memory; measured
    )

    last: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Adapt the last n layers only, and leave those below as they are; 0: all layers."
    )

    @property
    def wide(self) -> bool:
        """Whether the adapter's own weights are fp32 whatever the model's type is."""
        return True

    def count(self, name: str, outputs: int, inputs: int) -> int:
        """Parameters trained for the linear layer called `name`."""
        raise NotImplementedError

    def kept_for(self, name: str, outputs: int, inputs: int) -> float:
        """Numbers per token that its backward pass keeps beside those of the layer alone."""
        raise NotImplementedError

    def misfit(self, outputs: int, inputs: int) -> Misfit | None:
        """Why a linear layer of this shape cannot be adapted so."""
        return None

    def suits(self, shapes: set[tuple[int, int]]) -> int | None:
        """The nearest value of the field that does not fit some shape and would fit them all; None without one."""
        return None

    def frozen_beside(self, shapes: list[tuple[int, int]]) -> int:
        """Numbers that are held frozen beside the trained ones."""
        return 0


class TargetedConfig(PlacedConfig):
    """A method whose linear layers the recipe names."""

    targets: tuple[str, ...] = Field(
        default=("all",), description="Module names to adapt; all means every linear layer but the head."
    )
    modules_to_save: tuple[str, ...] = Field(
        default=(), description="Modules trained in full and saved with the adapter."
    )

    @property
    def saved(self) -> tuple[str, ...]:
        return self.modules_to_save

    def places(self) -> str:
        where = "all linear layers" if self.targets == ("all",) else ", ".join(self.targets)
        return where + (f" of the last {self.last} layers" if self.last else "")


class LowRankConfig(TargetedConfig):
    """W + s B A with A (rank, inputs) and B (outputs, rank)."""

    rank: Annotated[int, Field(ge=1, le=4096)] = Field(default=16, description="Rank r of the update.")
    alpha: Annotated[float, Field(gt=0)] = Field(
        default=32.0, description="Scale: alpha/r, or alpha/sqrt(r) with rslora."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Dropout on the adapter's input.")
    rslora: bool = Field(default=False, description="Rank-stabilised scale (arXiv:2312.03732).")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Type of the adapter's master weights."
    )

    @property
    def drops(self) -> float:
        return self.dropout

    @property
    def wide(self) -> bool:
        return self.dtype == "float32"

    def told(self) -> str:
        return f"{self.title}, rank {self.rank}, on {self.places()}"

    def count(self, name: str, outputs: int, inputs: int) -> int:
        return self.rank * (outputs + inputs)

    def kept_for(self, name: str, outputs: int, inputs: int) -> float:
        return self.rank + (3.5 * inputs if self.dropout else 0)  # what is left of the input, in fp32, and where

    def misfit(self, outputs: int, inputs: int) -> Misfit | None:
        limit = min(outputs, inputs)
        if self.rank <= limit:
            return None
        return Misfit("E310", f"rank {self.rank} is above its dimension {limit}", "rank")

    def suits(self, shapes: set[tuple[int, int]]) -> int | None:
        return min(min(shape) for shape in shapes)


class LoraConfig(LowRankConfig):
    """Low-rank adapters (arXiv:2106.09685)."""

    title: ClassVar[str] = "LoRA"
    paper: ClassVar[str] = "arXiv:2106.09685"
    method: Literal["lora"] = Field(default="lora", description=METHOD)

    def misfit(self, outputs: int, inputs: int) -> Misfit | None:
        """Plain LoRA of any rank can be computed; above the dimension it is merely wasteful."""
        return None


class RsloraConfig(LowRankConfig):
    """LoRA whose scale alpha/sqrt(r) suits high ranks (arXiv:2312.03732)."""

    title: ClassVar[str] = "rsLoRA"
    paper: ClassVar[str] = "arXiv:2312.03732"
    method: Literal["rslora"] = Field(default="rslora", description=METHOD)
    rslora: bool = Field(default=True, description="Rank-stabilised scale (arXiv:2312.03732).")


class DoraConfig(LowRankConfig):
    """LoRA on directions, with a learned length per output (arXiv:2402.09353)."""

    title: ClassVar[str] = "DoRA"
    paper: ClassVar[str] = "arXiv:2402.09353"
    reads_weights: ClassVar[bool] = True
    scatter: ClassVar[float] = 1.4
    method: Literal["dora"] = Field(default="dora", description=METHOD)

    def count(self, name: str, outputs: int, inputs: int) -> int:
        return super().count(name, outputs, inputs) + outputs

    def kept_for(self, name: str, outputs: int, inputs: int) -> float:
        return self.rank + outputs


class SpectralConfig(LowRankConfig):
    """LoRA that begins with a part of W itself; what it began with is taken away again, so that step 0 is W."""

    reads_weights: ClassVar[bool] = True

    def kept_for(self, name: str, outputs: int, inputs: int) -> float:
        return 2 * self.rank

    def frozen_beside(self, shapes: list[tuple[int, int]]) -> int:
        return sum(self.rank * (outputs + inputs) for outputs, inputs in shapes)


class PissaConfig(SpectralConfig):
    """LoRA that begins with the largest singular directions of W (arXiv:2404.02948)."""

    title: ClassVar[str] = "PiSSA"
    paper: ClassVar[str] = "arXiv:2404.02948"
    method: Literal["pissa"] = Field(default="pissa", description=METHOD)
    iterations: Annotated[int, Field(ge=0, le=64)] = Field(
        default=0,
        description="Subspace iterations of a randomised decomposition; 0: the exact one, slow if wide.",
    )


class OloraConfig(SpectralConfig):
    """LoRA that begins with the QR decomposition of W (arXiv:2406.01775)."""

    title: ClassVar[str] = "OLoRA"
    paper: ClassVar[str] = "arXiv:2406.01775"
    method: Literal["olora"] = Field(default="olora", description=METHOD)


class LoraFaConfig(LowRankConfig):
    """LoRA whose A stays as it began: only B is trained (arXiv:2308.03303)."""

    title: ClassVar[str] = "LoRA-FA"
    paper: ClassVar[str] = "arXiv:2308.03303"
    frozen_keys: ClassVar[tuple[str, ...]] = (".lora_A.",)
    method: Literal["lora_fa"] = Field(default="lora_fa", description=METHOD)

    def count(self, name: str, outputs: int, inputs: int) -> int:
        return self.rank * outputs

    def frozen_beside(self, shapes: list[tuple[int, int]]) -> int:
        return sum(self.rank * inputs for _, inputs in shapes)


class Ia3Config(TargetedConfig):
    """Learned factors on keys, values and the middle of the MLP (arXiv:2205.05638)."""

    title: ClassVar[str] = "(IA)³"
    paper: ClassVar[str] = "arXiv:2205.05638"
    rates: ClassVar[tuple[float, float]] = (1e-4, 5e-2)
    usual_rate: ClassVar[tuple[str, float]] = ("1e-3 to 1e-2", 3e-3)
    keeps_inputs: ClassVar[bool] = False
    keeps_wide: ClassVar[bool] = True
    method: Literal["ia3"] = Field(default="ia3", description=METHOD)
    targets: tuple[str, ...] = Field(
        default=("k_proj", "v_proj", "down_proj"),
        description="Module names to adapt; all means every linear layer but the head.",
    )
    feedforward: tuple[str, ...] = Field(
        default=("down_proj",), description="Those of the targets whose inputs are scaled; of others it is the outputs."
    )

    def scales_inputs(self, name: str) -> bool:
        return name.removesuffix(".weight").endswith(self.feedforward)

    def count(self, name: str, outputs: int, inputs: int) -> int:
        return inputs if self.scales_inputs(name) else outputs

    def kept_for(self, name: str, outputs: int, inputs: int) -> float:
        return self.count(name, outputs, inputs)

    def told(self) -> str:
        return f"{self.title}, factors on {self.places()}"


class VeraConfig(TargetedConfig):
    """Random low-rank matrices shared by all layers, with learned factors (arXiv:2310.11454)."""

    title: ClassVar[str] = "VeRA"
    paper: ClassVar[str] = "arXiv:2310.11454"
    rates: ClassVar[tuple[float, float]] = (1e-4, 5e-2)
    usual_rate: ClassVar[tuple[str, float]] = ("1e-3 to 1e-2", 4e-3)
    frozen_keys: ClassVar[tuple[str, ...]] = ("vera_A", "vera_B")
    keeps_inputs: ClassVar[bool] = False
    keeps_wide: ClassVar[bool] = True
    scatter: ClassVar[float] = 1.4
    method: Literal["vera"] = Field(default="vera", description=METHOD)
    rank: Annotated[int, Field(ge=1, le=16384)] = Field(default=256, description="Rank r of the update.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Dropout on the adapter's input.")
    initial: float = Field(default=0.1, description="First value of the factors between the two random matrices.")
    seed: int = Field(default=0, description="Of the two random matrices, which are saved as well.")

    @property
    def drops(self) -> float:
        return self.dropout

    def told(self) -> str:
        return f"{self.title}, rank {self.rank}, on {self.places()}"

    def count(self, name: str, outputs: int, inputs: int) -> int:
        return self.rank + outputs

    def kept_for(self, name: str, outputs: int, inputs: int) -> float:
        return self.rank + outputs  # what either factor multiplies

    def frozen_beside(self, shapes: list[tuple[int, int]]) -> int:
        widest = [max(side) for side in zip(*shapes, strict=True)] or [0]
        return self.rank * sum(widest)


class NamedConfig(AdapterConfig):
    """A method that trains some of the model's own weights, told by their names; the whole model is saved."""

    kept: ClassVar[Literal["adapter", "model"]] = "model"
    rates: ClassVar[tuple[float, float]] = (1e-6, math.inf)
    usual_rate: ClassVar[tuple[str, float]] = ("1e-5 to 5e-5", 2e-5)

    def trains(self, name: str, layer: int | None, depth: int) -> bool:
        """Whether the tensor called `name`, of a layer or of none, is trained in a model of `depth` layers."""
        raise NotImplementedError


class FullConfig(NamedConfig):
    """Train every weight."""

    title: ClassVar[str] = "full fine-tuning"
    method: Literal["full"] = Field(default="full", description=METHOD)

    def told(self) -> str:
        return "train every weight"

    def trains(self, name: str, layer: int | None, depth: int) -> bool:
        return True


class FreezeConfig(NamedConfig):
    """Train some layers and freeze the rest."""

    title: ClassVar[str] = "freeze"
    method: Literal["freeze"] = Field(default="freeze", description=METHOD)
    first: Annotated[int, Field(ge=0)] = Field(default=0, description="Train the first n layers.")
    last: Annotated[int, Field(ge=0)] = Field(default=0, description="Train the last n layers.")
    names: tuple[str, ...] = Field(default=(), description="Also train parameters whose name contains one of these.")

    def told(self) -> str:
        counts = {"first": self.first, "last": self.last}
        parts = [f"the {which} {count} layers" for which, count in counts.items() if count]
        return "train only " + ", ".join([*parts, *self.names])

    def trains(self, name: str, layer: int | None, depth: int) -> bool:
        by_depth = layer is not None and (layer < self.first or layer >= depth - self.last)
        return by_depth or any(part in name for part in self.names)


class BitfitConfig(NamedConfig):
    """Train the biases alone (arXiv:2106.10199)."""

    title: ClassVar[str] = "BitFit"
    paper: ClassVar[str] = "arXiv:2106.10199"
    rates: ClassVar[tuple[float, float]] = (1e-5, 1e-2)
    usual_rate: ClassVar[tuple[str, float]] = ("1e-4 to 1e-3", 5e-4)
    method: Literal["bitfit"] = Field(default="bitfit", description=METHOD)

    def told(self) -> str:
        return "BitFit: train the biases"

    def trains(self, name: str, layer: int | None, depth: int) -> bool:
        return name.endswith(".bias")


class NormsConfig(NamedConfig):
    """Train the norms alone (arXiv:2312.11420)."""

    title: ClassVar[str] = "norm tuning"
    paper: ClassVar[str] = "arXiv:2312.11420"
    rates: ClassVar[tuple[float, float]] = (1e-5, 1e-2)
    usual_rate: ClassVar[tuple[str, float]] = ("1e-4 to 1e-3", 5e-4)
    method: Literal["norms"] = Field(default="norms", description=METHOD)

    def told(self) -> str:
        return "train the norms"

    def trains(self, name: str, layer: int | None, depth: int) -> bool:
        module = name.rpartition(".")[0].rpartition(".")[2].lower()
        return any(word in module for word in NORM_WORDS)
