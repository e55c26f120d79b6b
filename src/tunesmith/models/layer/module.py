"""The fast layer in place of transformers' decoder layers, under the same names and with the same parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from jaxtyping import Float
from peft.tuners.adaption_prompt.layer import AdaptedAttention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, PreTrainedModel

from tunesmith.models.attention import RAGGED
from tunesmith.models.forest import Forest
from tunesmith.models.layer.function import Call, LayerFunction, forward_layer
from tunesmith.models.layer.heads import Rotation
from tunesmith.models.layer.projection import Projection, part_of
from tunesmith.models.layer.weights import Norm, Norms, Shape, Weights
from tunesmith.models.marks import MARKS
from tunesmith.models.offload import HostStore, checkpoint_away
from tunesmith.models.policy import Policy


def no_window(attention: nn.Module) -> int | None:
    return None


def own_window(attention: nn.Module) -> int | None:
    return attention.sliding_window  # pyright: ignore[reportReturnType, reportAttributeAccessIssue]


def config_window(attention: nn.Module) -> int | None:
    return attention.config.sliding_window  # pyright: ignore[reportReturnType, reportAttributeAccessIssue]


# Decoder layers that compute this formula in transformers, and where each says how many keys a row sees.
WINDOWS: dict[str, Callable[[nn.Module], int | None]] = {
    "LlamaDecoderLayer": no_window,
    "MistralDecoderLayer": config_window,
    "Qwen2DecoderLayer": own_window,
    "Qwen3DecoderLayer": own_window,
    "SmolLM3DecoderLayer": own_window,
    "Olmo2DecoderLayer": no_window,
}


PROJECTIONS = {  # linear layers that read the same rows, side by side
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


def put_fast_layers(model: PreTrainedModel) -> PreTrainedModel:
    """Replace the decoder layers of known architectures; call it before adapters are attached."""
    if model.config.to_dict().get("hidden_act") != "silu":
        return model
    found = [(name, module) for name, module in model.named_modules() if type(module).__name__ in WINDOWS]
    for number, (name, module) in enumerate(found):
        model.set_submodule(name, FastLayer(module, is_last=number == len(found) - 1))
    return model


class FastLayer(nn.Module):
    """A decoder layer that takes the fast path unless something forbids it, and transformers' own then."""

    def __init__(self, layer: nn.Module, is_last: bool) -> None:
        super().__init__()
        self._modules = layer._modules  # one set of children for both, whoever replaces one
        self.plain = (layer,)  # in a tuple, so that its parameters are not found twice
        self.is_last = is_last
        self.policy: Policy = "off"
        self.store: HostStore | None = None
        self.shape = shape_of(layer)

    def forward(
        self,
        hidden_states: Float[Tensor, "1 T D"],
        position_embeddings: tuple[Float[Tensor, "1 T E"], Float[Tensor, "1 T E"]],
        past_key_values: Cache | None = None,
        forest: Forest | None = None,
        **others: object,
    ) -> Float[Tensor, "1 T D"]:
        """The layer's output; of the last layer only the rows that the forest says are wanted."""
        rows = forest.wanted if self.is_last and forest is not None else None
        is_plain = forest is None or forest.learned is not None or self.attention_obstacle() is not None
        weights = None if is_plain else self.weights()
        if forest is None or weights is None:
            given = {**others, "past_key_values": past_key_values, "forest": forest}
            out = self.run_plain(hidden_states, position_embeddings, given)
            return out if rows is None else out.index_select(1, rows)
        cos, sin = position_embeddings
        trained = weights.trained()
        wants_gradient = torch.is_grad_enabled() and (trained or hidden_states.requires_grad)
        policy = self.policy if wants_gradient else "full"
        rotation = Rotation(*(each[0].to(hidden_states.dtype).contiguous() for each in (cos, sin)))  # OLMo 2: fp32
        call = Call(weights, self.shape, rotation, forest, rows, policy, self.store)
        if wants_gradient:
            return LayerFunction.apply(hidden_states.flatten(0, 1), call, *trained)[None]
        return forward_layer(hidden_states.flatten(0, 1), call)[0][None]

    def run_plain(self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], given: dict) -> Tensor:
        (layer,) = self.plain

        def run(states: Tensor) -> Tensor:
            return layer.forward(states, position_embeddings=position_embeddings, **given)

        if not torch.is_grad_enabled() or self.policy in ("off", "selective"):
            return run(hidden_states)
        if self.policy == "offloaded" and self.store is not None:
            return checkpoint_away(run, hidden_states, self.store)
        return checkpoint(run, hidden_states, use_reentrant=False)  # pyright: ignore[reportReturnType]

    def obstacle(self) -> str | None:
        """What keeps the layer from the fast path just now, in words."""
        names = chain.from_iterable(PROJECTIONS.values())
        more = (name for name in names if part_of(self.get_submodule(name)) is None)
        return self.attention_obstacle() or next(
            (f"{name} is more than a linear layer with LoRA" for name in more), None
        )

    def sees_more(self) -> bool:
        """Whether attention sees a learned prompt of its own."""
        return isinstance(self.get_submodule("self_attn"), AdaptedAttention)

    def attention_obstacle(self) -> str | None:
        attention = self.get_submodule("self_attn")
        if self.sees_more():
            return "attention sees a learned prompt"
        if attention.config._attn_implementation != RAGGED:  # pyright: ignore[reportAttributeAccessIssue]
            return "attention is not ragged"
        if self.training and attention.attention_dropout:
            return "attention probabilities are dropped"
        return None

    def weights(self) -> Weights | None:
        """The parameters as they are now, since adapters may have been attached, switched off or merged; None where a
        projection is more than linear layers with LoRA."""
        qkv, out, gate_up, down = (projection(self, names) for names in PROJECTIONS.values())
        if qkv is None or out is None or gate_up is None or down is None:
            return None
        own, rest = self._modules, self.get_submodule("self_attn")._modules
        before_mlp, after_attention = own.get("post_attention_layernorm"), None
        if "post_feedforward_layernorm" in own:  # norms behind the halves, none before them
            before_mlp, after_attention = None, before_mlp
        return Weights(
            qkv=qkv,
            out=out,
            gate_up=gate_up,
            down=down,
            norms=Norms(
                before_attention=norm_of(own.get("input_layernorm")),
                after_attention=norm_of(after_attention),
                before_mlp=norm_of(before_mlp),
                after_mlp=norm_of(own.get("post_feedforward_layernorm")),
                query=norm_of(rest.get("q_norm")),
                key=norm_of(rest.get("k_norm")),
            ),
        )


def shape_of(layer: nn.Module) -> Shape:
    attention = layer.get_submodule("self_attn")
    known = vars(attention)
    width = known["head_dim"]
    return Shape(
        heads=outputs_of(attention, "q_proj") // width,
        key_heads=outputs_of(attention, "k_proj") // width,
        width=width,
        scale=known["scaling"],
        window=WINDOWS[type(layer).__name__](attention),
        rotary=bool(known.get("use_rope", True)),
    )


def outputs_of(attention: nn.Module, name: str) -> int:
    return attention.get_submodule(name).out_features  # pyright: ignore[reportReturnType]


def projection(layer: nn.Module, names: Sequence[str]) -> Projection | None:
    found = [part_of(layer.get_submodule(each)) for each in names]
    parts = tuple(part for part in found if part is not None)
    return Projection(parts, MARKS[names[0].rpartition(".")[2]]) if len(parts) == len(names) else None


def norm_of(module: nn.Module | None) -> Norm | None:
    if module is None:
        return None
    return Norm(module.weight, module.variance_epsilon)  # pyright: ignore[reportArgumentType]
