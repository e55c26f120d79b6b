"""The settings of learned prompts: numbers before every text, or beside its keys, that no token gave."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Protocol

from pydantic import Field

from tunesmith.models.adapter_config import METHOD, AdapterConfig

Shapes = dict[str, tuple[int, ...]]
Begin = Literal["vocabulary", "text", "random"]
BEGINS = "How it begins: as tokens drawn from the vocabulary, as those of init_text, or random."
TEXT = "Text that it begins as; a shorter one is repeated, a longer one is cut."
TYPES = ("llama", "mistral")  # models for which PEFT has adaption prompts


class Wide(Protocol):
    """The sizes of a model that decide those of a learned prompt."""

    @property
    def hidden(self) -> int: ...

    @property
    def layers(self) -> int: ...

    @property
    def query(self) -> int: ...

    @property
    def key(self) -> int: ...


class LearnedConfig(AdapterConfig):
    """A prompt that is learned; no weight of the model changes."""

    merges: ClassVar[bool] = False
    begins_as_base: ClassVar[bool] = False  # whether a new one changes nothing before the first step
    written_out: ClassVar[bool] = True  # whether the layers of models/layer compute it

    def shapes(self, model: Wide) -> Shapes:
        """Of every trained tensor."""
        raise NotImplementedError

    def lowest(self, layers: int) -> int:
        """The lowest layer that the backward pass goes through."""
        return 0

    def kept_more(self, model: Wide) -> int:
        """Numbers per token and layer that the backward pass keeps beside those of the layer alone."""
        return 0


class VirtualConfig(LearnedConfig):
    """A prompt that stands before every text and takes positions of the context."""

    computed: ClassVar[bool] = True  # whether its tokens are rows of every forward pass, or keys and values alone
    tokens: Annotated[int, Field(ge=1, le=65536)] = Field(default=20, description="Learned tokens before every text.")


class PromptConfig(VirtualConfig):
    """Prompt tuning: learned embeddings before every text (arXiv:2104.08691)."""

    title: ClassVar[str] = "prompt tuning"
    paper: ClassVar[str] = "arXiv:2104.08691"
    rates: ClassVar[tuple[float, float]] = (1e-3, 0.5)
    usual_rate: ClassVar[tuple[str, float]] = ("1e-2 to 1e-1", 3e-2)
    method: Literal["prompt"] = Field(default="prompt", description=METHOD)
    init: Begin = Field(default="vocabulary", description=BEGINS)
    init_text: str | None = Field(default=None, description=TEXT)

    def told(self) -> str:
        return f"{self.title}, {self.tokens} learned tokens"

    def shapes(self, model: Wide) -> Shapes:
        return {"prompt_encoder.embedding.weight": (self.tokens, model.hidden)}


class PTuningConfig(VirtualConfig):
    """Prompt tuning through a small network that forms the embeddings (arXiv:2103.10385)."""

    title: ClassVar[str] = "p-tuning"
    paper: ClassVar[str] = "arXiv:2103.10385"
    rates: ClassVar[tuple[float, float]] = (1e-4, 5e-2)
    usual_rate: ClassVar[tuple[str, float]] = ("1e-3 to 1e-2", 3e-3)
    method: Literal["p_tuning"] = Field(default="p_tuning", description=METHOD)
    encoder: Literal["mlp", "lstm"] = Field(default="mlp", description="The network: three layers, or an LSTM and two.")
    width: Annotated[int, Field(ge=1, le=65536)] | None = Field(
        default=None, description="Width of the network's middle; empty: that of the model."
    )
    depth: Annotated[int, Field(ge=1, le=16)] = Field(default=2, description="Layers of the LSTM.")

    def told(self) -> str:
        return f"{self.title}, {self.tokens} learned tokens through an {self.encoder.upper()}"

    def shapes(self, model: Wide) -> Shapes:
        outside, middle = model.hidden, self.width or model.hidden
        sizes = [outside, middle, middle, outside]
        found: Shapes = {"embedding.weight": (self.tokens, outside)}
        if self.encoder == "lstm":
            for layer in range(self.depth):
                for way in ("", "_reverse"):
                    inputs = outside if layer == 0 else 2 * middle
                    found[f"lstm_head.weight_ih_l{layer}{way}"] = (4 * middle, inputs)
                    found[f"lstm_head.weight_hh_l{layer}{way}"] = (4 * middle, middle)
                    found |= {f"lstm_head.bias_{part}_l{layer}{way}": (4 * middle,) for part in ("ih", "hh")}
            sizes = [2 * middle, 2 * middle, outside]
        for number, (inputs, outputs) in enumerate(pairwise(sizes)):
            found |= {f"mlp_head.{2 * number}.weight": (outputs, inputs), f"mlp_head.{2 * number}.bias": (outputs,)}
        return {f"prompt_encoder.{name}": shape for name, shape in found.items()}


class PrefixConfig(VirtualConfig):
    """Prefix tuning: learned keys and values before every text, in every layer (arXiv:2101.00190)."""

    title: ClassVar[str] = "prefix tuning"
    paper: ClassVar[str] = "arXiv:2101.00190"
    rates: ClassVar[tuple[float, float]] = (1e-4, 0.3)
    usual_rate: ClassVar[tuple[str, float]] = ("1e-3 to 3e-2", 5e-3)
    written_out: ClassVar[bool] = False
    computed: ClassVar[bool] = False
    method: Literal["prefix"] = Field(default="prefix", description=METHOD)
    projection: bool = Field(default=False, description="Form keys and values by a small network while training.")
    width: Annotated[int, Field(ge=1, le=65536)] | None = Field(
        default=None, description="Width of that network's middle; empty: that of the model."
    )
    init: Begin = Field(default="vocabulary", description=BEGINS + " With projection it begins random.")
    init_text: str | None = Field(default=None, description=TEXT)

    def told(self) -> str:
        return f"{self.title}, {self.tokens} learned keys and values per layer"

    def shapes(self, model: Wide) -> Shapes:
        numbers = 2 * model.layers * model.key
        if not self.projection:
            return {"prompt_encoder.embedding.weight": (self.tokens, numbers)}
        middle = self.width or model.hidden
        return {
            "prompt_encoder.embedding.weight": (self.tokens, model.key),
            "prompt_encoder.transform.0.weight": (middle, model.key),
            "prompt_encoder.transform.0.bias": (middle,),
            "prompt_encoder.transform.2.weight": (numbers, middle),
            "prompt_encoder.transform.2.bias": (numbers,),
        }


class LlamaAdapterConfig(LearnedConfig):
    """Adaption prompts: learned tokens that the attention of each layer sees through a gate (arXiv:2303.16199)."""

    title: ClassVar[str] = "LLaMA-Adapter"
    paper: ClassVar[str] = "arXiv:2303.16199"
    rates: ClassVar[tuple[float, float]] = (1e-4, 0.1)
    usual_rate: ClassVar[tuple[str, float]] = ("1e-3 to 1e-2", 9e-3)
    begins_as_base: ClassVar[bool] = True
    written_out: ClassVar[bool] = False
    method: Literal["llama_adapter"] = Field(default="llama_adapter", description=METHOD)
    tokens: Annotated[int, Field(ge=1, le=65536)] = Field(default=10, description="Learned tokens of each layer.")
    last: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Adapt the last n layers only, and leave those below as they are; 0: all layers."
    )

    def told(self) -> str:
        where = f"the last {self.last} layers" if self.last else "all layers"
        return f"{self.title}, {self.tokens} learned tokens in {where}"

    def lowest(self, layers: int) -> int:
        return layers - (self.last or layers)

    def shapes(self, model: Wide) -> Shapes:
        found: Shapes = {}
        for layer in range(self.lowest(model.layers), model.layers):
            stem = f"layers.{layer}.self_attn."
            found |= {f"{stem}adaption_prompt": (1, self.tokens, model.hidden), f"{stem}adaption_gate": (1,)}
        return found

    def kept_more(self, model: Wide) -> int:
        return 4 * model.query + 2 * self.tokens * max(1, model.query // 64)


def begins_as_base(adapter: AdapterConfig) -> bool:
    """Whether a new adapter changes nothing before the first step."""
    return not isinstance(adapter, LearnedConfig) or adapter.begins_as_base


def positions_before(adapter: AdapterConfig) -> int:
    """Places of the context that learned tokens take before the first token of a text."""
    return adapter.tokens if isinstance(adapter, VirtualConfig) else 0


def rows_added(adapter: AdapterConfig) -> int:
    """Rows that learned tokens add to every forward pass."""
    return adapter.tokens if isinstance(adapter, VirtualConfig) and adapter.computed else 0
