"""Which models GGUF can hold: the name of each family, its settings as keys, and what has no place in the format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter
from transformers import PreTrainedConfig

from tunesmith.errors import Fix, ModelError, Where
from tunesmith.export.gguf.turning import head_width, main_rope, odd_turning, turned_width, write_scaling

SILU, GELU = frozenset({"silu", "swish"}), frozenset({"gelu_pytorch_tanh"})
KEEP = Fix("write the model folder that transformers, vLLM and SGLang read", command="tunesmith export MODEL OUT")


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture of the format.

    `permuted`: query and key rows are stored in the order of interleaved rotary pairs. `shift` is added to norm
    weights. `local` layers out of every so many see a window only, the last of them everything. `wide_in` is the
    number of layers whose attention scale is not that of the head's width.
    """

    architecture: str
    permuted: bool = False
    shift: float = 0.0
    activation: frozenset[str] = SILU
    tied_only: bool = False
    every: int = 0
    wide_in: int = 0

    @property
    def is_gemma(self) -> bool:
        return self.shift != 0


FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", permuted=True),
    "mistral": Family("llama", permuted=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "gemma": Family("gemma", shift=1.0, activation=GELU, tied_only=True),
    "gemma2": Family("gemma2", shift=1.0, activation=GELU, tied_only=True, every=2, wide_in=46),
    "gemma3_text": Family("gemma3", shift=1.0, activation=GELU, every=6, wide_in=62),
    "phi3": Family("phi3"),
    "olmo2": Family("olmo2"),
}


def family_of(config: PreTrainedConfig) -> Family:
    """ModelError E431 for an architecture that is not written, E432 for a setting that the format cannot say."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(
            "E431",
            f"no GGUF is written for the architecture {config.model_type!r}",
            where=Where("config.json", field="model_type"),
            evidence=[f"known: {', '.join(sorted(FAMILIES))}"],
            fixes=[KEEP],
        )
    odd = oddities(config.to_dict(), family)
    if odd:
        raise ModelError(
            "E432",
            "GGUF cannot say what this model does, so the file would answer differently",
            where=Where("config.json"),
            evidence=odd,
            fixes=[KEEP],
        )
    return family


def oddities(config: Mapping[str, Any], family: Family) -> list[str]:
    """Settings that programs reading the file would take to be something else."""
    found: list[str] = []
    activation = str(config.get("hidden_activation") or config.get("hidden_act"))
    if activation not in family.activation:
        found.append(f"activation {activation}; the format means {' or '.join(sorted(family.activation))}")
    found += odd_turning(config, family.architecture)
    if family.tied_only and not config.get("tie_word_embeddings", True):
        found.append("a head of its own; the format means that of the embedding")
    if config.get("use_sliding_window"):
        found.append("sliding windows (use_sliding_window)")
    return found + odd_attention(config, family)


def odd_attention(config: Mapping[str, Any], family: Family) -> list[str]:
    found: list[str] = []
    layers, width = config["num_hidden_layers"], head_width(config)
    if family.every:
        wanted = ["full_attention" if at % family.every == family.every - 1 else "sliding_attention"
                  for at in range(layers)]  # fmt: skip
        if list(config.get("layer_types") or wanted) != wanted:
            found.append(f"an order of local layers other than {family.every - 1} before each that sees all")
    scalar = config.get("query_pre_attn_scalar")
    meant = config["hidden_size"] / config["num_attention_heads"] if layers == family.wide_in else width
    if scalar is not None and scalar != meant:
        found.append(f"query_pre_attn_scalar {scalar}; the format means {meant:g}")
    if family.architecture in ("gemma", "phi3", "olmo2") and config.get("attention_bias"):
        found.append("attention_bias")
    if family.architecture == "gemma3" and config.get("attn_logit_softcapping"):
        found.append("attn_logit_softcapping")
    return found


def write_settings(writer: GGUFWriter, config: Mapping[str, Any], family: Family, context: int) -> None:
    """The keys of the architecture."""
    width = head_width(config)
    writer.add_context_length(context)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(turned_width(config))
    writer.add_rope_freq_base(float(main_rope(config).get("rope_theta", 10_000.0)))
    if family.every:
        writer.add_sliding_window(config["sliding_window"])
    if family.architecture == "phi3":
        writer.add_sliding_window(config.get("sliding_window") or 0)
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    write_scaling(writer, config, family.architecture)
