"""Rotary positions in GGUF: the keys and tensors that say how fast each part of a head turns, and what they cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from gguf import GGUFWriter, RopeScalingType

LOCAL_THETA = 10_000.0  # of Gemma 3's local layers: fixed in the programs that read the file
BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}  # turns in pretraining between which YaRN slows down: fixed likewise
KNOWN: Mapping[str, tuple[str, ...]] = {  # beside turning as pretrained
    "phi3": ("longrope",),
    "gemma3": ("linear", "llama3"),
}
USUAL = ("linear", "llama3", "yarn")


def rope_sets(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rotary settings by the kind of layer they are for; `all` where there is one kind."""
    found = dict(config.get("rope_parameters") or {})
    return found if "full_attention" in found else {"all": found}


def main_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    sets = rope_sets(config)
    return sets.get("full_attention", sets.get("all", {}))


def head_width(config: Mapping[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def turned_width(config: Mapping[str, Any]) -> int:
    """How many numbers of a head are turned."""
    return int(head_width(config) * main_rope(config).get("partial_rotary_factor", 1.0))


def odd_turning(config: Mapping[str, Any], architecture: str) -> list[str]:
    """Rotary settings that the programs reading the file would take to be something else."""
    found: list[str] = []
    known = ("default", *KNOWN.get(architecture, USUAL))
    for name, rope in rope_sets(config).items():
        kind = rope.get("rope_type", "default")
        if kind not in known:
            found.append(f"rotary embedding of type {kind} ({name}); known: {', '.join(known)}")
        if kind == "yarn" and not rope.get("truncate", True):
            found.append("YaRN between dimensions that are no whole numbers (truncate: false)")
        if kind == "yarn":
            odd = {key: rope[key] for key, usual in BETAS.items() if (rope.get(key) or usual) != usual}
            found += [f"YaRN with {key} {value:g}; the format means {BETAS[key]:g}" for key, value in odd.items()]
    if architecture == "gemma3":
        theta = rope_sets(config)["sliding_attention"]
        if theta.get("rope_type") != "default" or theta.get("rope_theta") != LOCAL_THETA:
            found.append(f"local layers turn with {theta}; the format means rope_theta {LOCAL_THETA:g}")
    return found


def write_scaling(writer: GGUFWriter, config: Mapping[str, Any], architecture: str) -> None:
    rope = main_rope(config)
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if rope.get("rope_type") == "yarn":
        write_yarn(writer, config)
    if architecture == "phi3":
        writer.add_rope_scaling_orig_ctx_len(original_length(config))
        if rope.get("rope_type") == "longrope":
            writer.add_rope_scaling_attn_factors(long_factor(config))


def write_yarn(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    """YaRN (arXiv:2309.00071); readers multiply by the paper's factor, and by that of a key where it is another."""
    rope, factor = main_rope(config), yarn_factor(config)
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(factor)
    writer.add_rope_scaling_orig_ctx_len(original_length(config))
    share = yarn_scale(rope, factor) / yarn_mean(factor, 1)
    if abs(share - 1) > 1e-6:
        writer.add_rope_scaling_attn_factors(share)


def yarn_factor(config: Mapping[str, Any]) -> float:
    named = main_rope(config).get("factor")
    return float(named) if named else config["max_position_embeddings"] / original_length(config)


def yarn_scale(rope: Mapping[str, Any], factor: float) -> float:
    """By what YaRN multiplies queries and keys."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    above, below = rope.get("mscale"), rope.get("mscale_all_dim")
    return yarn_mean(factor, above) / yarn_mean(factor, below) if above and below else yarn_mean(factor, 1)


def yarn_mean(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def original_length(config: Mapping[str, Any]) -> int:
    named = main_rope(config).get("original_max_position_embeddings")
    return named or config.get("original_max_position_embeddings") or config["max_position_embeddings"]


def long_factor(config: Mapping[str, Any]) -> float:
    """By what LongRoPE multiplies queries and keys (arXiv:2402.13753)."""
    named = main_rope(config).get("attention_factor")
    if named is not None:
        return float(named)
    original = original_length(config)
    scale = config["max_position_embeddings"] / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def rope_tensors(config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Divisors of the turning speeds, where some are slower than others."""
    rope = main_rope(config)
    if rope.get("rope_type") == "longrope":
        pairs = {"rope_factors_long.weight": "long_factor", "rope_factors_short.weight": "short_factor"}
        return {name: torch.tensor(rope[key], dtype=torch.float32) for name, key in pairs.items()}
    if rope.get("rope_type") != "llama3":
        return {}
    width = turned_width(config)
    speed = rope["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    turns = rope["original_max_position_embeddings"] * speed / (2 * math.pi)  # over the length of pretraining
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return {"rope_freqs.weight": (1 / (share + (1 - share) / rope["factor"])).float()}
