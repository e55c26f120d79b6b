"""The settings of bottleneck adapters: small networks behind or beside the halves of a layer."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tunesmith.models.adapter_config import METHOD, PlacedConfig

# Linear layers that end the attention and the MLP of a layer, in the architectures that are known.
ATTENTION = re.compile(r"(?:^|\.)(?:self_attn\.o_proj|attention\.(?:output\.dense|out_lin)|attn\.Wo)\Z")
MLP = re.compile(r"(?:^|\.)(?:mlp\.(?:down_proj|Wo)|ffn\.lin2|(?<!attention\.)output\.dense)\Z")
INSIDE = re.compile(r"(?:^|\.)(?:layers?|h|blocks)\.\d+\.")


class BottleneckConfig(PlacedConfig):
    """Small networks behind or beside the halves of a layer (arXiv:1902.00751, arXiv:2005.00247, arXiv:2110.04366)."""

    title: ClassVar[str] = "bottleneck adapters"
    paper: ClassVar[str] = "arXiv:1902.00751"
    merges: ClassVar[bool] = False
    keeps_inputs: ClassVar[bool] = False
    method: Literal["bottleneck"] = Field(default="bottleneck", description=METHOD)
    kind: Literal["pfeiffer", "houlsby", "parallel"] = Field(
        default="pfeiffer",
        description="pfeiffer: behind the MLP; houlsby: behind attention and MLP; parallel: beside the MLP.",
    )
    reduction: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=16, description="How many times narrower than the layer the bottleneck is."
    )
    activation: Literal["gelu", "relu", "silu"] = Field(default="gelu", description="Function in the bottleneck.")
    scale: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="Factor on what is added; 4 with parallel in its paper."
    )

    def told(self) -> str:
        where = f" of the last {self.last} layers" if self.last else ""
        return f"{self.title} ({self.kind}), {self.reduction} times narrower{where}"

    def changes(self, name: str) -> bool:
        """Whether an adapter stands at the linear layer of this path."""
        ends = MLP.search(name) or (self.kind == "houlsby" and ATTENTION.search(name))
        return bool(ends) and INSIDE.search(name) is not None

    def width(self, states: int) -> int:
        """Of the bottleneck, for states of that width."""
        return max(1, states // self.reduction)

    def count(self, name: str, outputs: int, inputs: int) -> int:
        width = self.width(outputs)
        return 2 * outputs * width + width + outputs

    def kept_for(self, name: str, outputs: int, inputs: int) -> float:
        return outputs + 2 * self.width(outputs)
