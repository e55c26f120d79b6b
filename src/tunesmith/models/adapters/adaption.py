"""LLaMA-Adapter (arXiv:2303.16199): tokens that attention sees beside a text, through a gate that begins closed."""

from __future__ import annotations

import peft
import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.adaption_prompt.layer import AdaptedAttention
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.errors import Fix, ModelError, Where
from tunesmith.models.adapters.base import wrap
from tunesmith.models.heads import has_head
from tunesmith.models.prompt_config import TYPES, LlamaAdapterConfig


class GatedAttention(AdaptedAttention):
    """PEFT's formula and names; learned numbers stay fp32 whatever the model's type is, and no query is rotated twice.

    It takes the place of PEFT's module and its parameters.
    """

    def __init__(self, other: AdaptedAttention) -> None:
        nn.Module.__init__(self)
        self.model_type, self.adapter_len = other.model_type, other.adapter_len
        self.model = other.model
        self.adaption_prompt = nn.Parameter(other.adaption_prompt.detach().float())
        self.adaption_gate = nn.Parameter(other.adaption_gate.detach().float())

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden_states: Float[Tensor, "B T D"],
        position_embeddings: tuple[Float[Tensor, "B T E"], Float[Tensor, "B T E"]],
        **others: object,
    ) -> tuple[Float[Tensor, "B T D"], object]:
        attention = self.model
        out, *rest = attention(hidden_states=hidden_states, position_embeddings=position_embeddings, **others)
        width = attention.head_dim
        prompt = self.adaption_prompt[0].to(hidden_states.dtype)
        query = rotated(attention.q_proj(hidden_states).unflatten(-1, (-1, width)).transpose(1, 2), position_embeddings)
        key, value = (layer(prompt).unflatten(-1, (-1, width)).transpose(0, 1) for layer in both(attention))
        query = query.unflatten(1, (len(key), -1))  # heads that share a key, side by side
        scores = torch.einsum("bkgte,kne->bkgtn", query, key) / width**0.5
        shares = self.adaption_gate * scores.softmax(-1, dtype=torch.float32)
        mixed = torch.einsum("bkgtn,kne->btkge", shares.to(value.dtype), value).flatten(2)
        return (out + attention.o_proj(mixed), *rest)


def both(attention: nn.Module) -> tuple[nn.Module, nn.Module]:
    return attention.get_submodule("k_proj"), attention.get_submodule("v_proj")


def rotated(states: Float[Tensor, "B H T E"], places: tuple[Tensor, Tensor]) -> Float[Tensor, "B H T E"]:
    cos, sin = (each.unsqueeze(1) for each in places)
    left, right = states.chunk(2, -1)
    return states * cos + torch.cat((-right, left), -1) * sin


def attach_adaption(model: PreTrainedModel, settings: LlamaAdapterConfig) -> PeftModel:
    layers = settings.last or model.config.get_text_config().num_hidden_layers
    config = peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=settings.tokens, adapter_layers=layers)
    return put_adaption(model, config)


def put_adaption(model: PreTrainedModel, config: peft.AdaptionPromptConfig) -> PeftModel:
    """PEFT's model with our attention in place of its own; ModelError E333 where it has none."""
    if model.config.model_type not in TYPES or has_head(model):
        raise ModelError(
            "E333",
            f"adaption prompts are known for language models of the types {' and '.join(TYPES)}, and this is "
            f"{model.config.model_type}{' with a head of values' if has_head(model) else ''}",
            where=Where(field="model.adapter.method"),
            fixes=[Fix("model.adapter.method=lora", {"model.adapter.method": "lora"})],
        )
    wrapped = wrap(model, config)
    inside = wrapped.get_base_model()
    for name, module in list(inside.named_modules()):
        if isinstance(module, AdaptedAttention):
            inside.set_submodule(name, GatedAttention(module))
    return wrapped
