"""A GGUF file answers by itself: its keys and numbers alone, computed as the programs that read such files compute.

It shares nothing with the model that the file was made from, so a wrong key, name or order of rows shows in the logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, quants
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tunesmith.errors import ModelError, Where
from tunesmith.export.gguf.families import FAMILIES, Family
from tunesmith.export.gguf.turning import BETAS, LOCAL_THETA
from tunesmith.models.gguf_header import check_gguf


@dataclass(frozen=True, slots=True)
class Heads:
    """How many, how wide, and how far a local layer sees (0: all)."""

    count: int
    groups: int
    width: int
    turned: int
    window: int


class Reading:
    """Raises ModelError E082 for a damaged file, E431 for an architecture that is not known."""

    def __init__(self, path: Path, adapter: Path | None = None) -> None:
        check_gguf(path)
        reader = GGUFReader(path)
        self.fields: dict[str, Any] = {name: part.contents() for name, part in reader.fields.items()}
        self.stored = {each.name: each for each in reader.tensors}
        self.updates: dict[str, Tensor] = {} if adapter is None else read_updates(adapter)
        name = self.fields.get("general.architecture")
        family = next((each for each in FAMILIES.values() if each.architecture == name), None)
        if family is None:
            message = f"the GGUF file is of an architecture that is not known: {name}"
            raise ModelError("E431", message, where=Where(str(path), field="general.architecture"))
        self.family: Family = family

    def key(self, name: str, default: Any = None) -> Any:
        return self.fields.get(f"{self.family.architecture}.{name}", default)

    def tensor(self, name: str) -> Tensor | None:
        """In fp32; None when the file has none of this name."""
        found = self.stored.get(name)
        if found is None:
            return None
        weights = torch.from_numpy(quants.dequantize(found.data, found.tensor_type).copy()).float()
        update = self.updates.get(name)
        return weights if update is None else weights + update

    def need(self, name: str) -> Tensor:
        found = self.tensor(name)
        if found is None:
            raise ModelError("E432", f"the GGUF file has no tensor {name}", where=Where(name))
        return found

    @cached_property
    def heads(self) -> Heads:
        count, groups = self.key("attention.head_count"), self.key("attention.head_count_kv")
        width = self.key("attention.key_length", self.key("embedding_length") // count)
        window = self.key("attention.sliding_window", 0) if self.family.every else 0
        return Heads(count, groups, width, self.key("rope.dimension_count", width), window)

    @torch.no_grad()
    def logits(self, rows: Sequence[Sequence[int]]) -> list[Float[Tensor, "T V"]]:
        """Logits of every next token, layer by layer for all rows, so that each weight is read once."""
        embedding = self.need("token_embd.weight")
        states = [embedding[torch.tensor(list(row))] for row in rows]
        if self.family.is_gemma:
            states = [state * self.key("embedding_length") ** 0.5 for state in states]
        for at in range(self.key("block_count")):
            layer = Layer(self, at)
            states = [layer(state) for state in states]
        norm, head = self.need("output_norm.weight"), self.tensor("output.weight")
        head = embedding if head is None else head
        found = [self.normed(state, norm) @ head.T for state in states]
        cap = self.key("final_logit_softcapping")
        return [cap * torch.tanh(each / cap) for each in found] if cap else found

    def normed(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """RMS norm by the weight as it is stored; x itself where there is none."""
        if weight is None:
            return x
        return (
            x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.key("attention.layer_norm_rms_epsilon")) * weight
        )


class Layer:
    """The weights of one layer, read once."""

    def __init__(self, file: Reading, at: int) -> None:
        self.file, self.heads, family = file, file.heads, file.family
        self.at = at
        self.local = family.every > 0 and at % family.every < family.every - 1
        names = [name for name in file.stored if name.startswith(f"blk.{at}.")]
        self.weights = {name.split(".", 2)[2]: file.need(name) for name in names}

    def __call__(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        get, normed = self.weights.get, self.file.normed
        x = x + normed(self.attention(normed(x, get("attn_norm.weight"))), get("post_attention_norm.weight"))
        return x + normed(self.feed_forward(normed(x, get("ffn_norm.weight"))), get("post_ffw_norm.weight"))

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def attention(self, x: Tensor) -> Tensor:
        heads, get = self.heads, self.weights.get
        if "attn_qkv.weight" in self.weights:
            sizes = [heads.count * heads.width, heads.groups * heads.width, heads.groups * heads.width]
            q, k, v = self.linear(x, "attn_qkv").split(sizes, -1)
        else:
            q, k, v = (self.linear(x, f"attn_{name}") for name in "qkv")
        q_norm, k_norm = get("attn_q_norm.weight"), get("attn_k_norm.weight")
        across = q_norm is not None and len(q_norm) != heads.width  # over all heads together
        if across:
            q, k = self.file.normed(q, q_norm), self.file.normed(k, k_norm)
        q, k, v = (each.unflatten(-1, (-1, heads.width)).transpose(0, 1) for each in (q, k, v))
        if not across:
            q, k = self.file.normed(q, q_norm), self.file.normed(k, k_norm)
        q, k = self.turned(q), self.turned(k)
        share = heads.count // heads.groups
        scores = q @ k.repeat_interleave(share, 0).transpose(1, 2) * self.scale()
        cap = self.file.key("attn_logit_softcapping")
        scores = cap * torch.tanh(scores / cap) if cap else scores
        mixed = self.masked(scores).softmax(-1) @ v.repeat_interleave(share, 0)
        return self.linear(mixed.transpose(0, 1).flatten(1), "attn_output")

    def scale(self) -> float:
        family = self.file.family
        if family.wide_in and self.file.key("block_count") == family.wide_in:
            return (self.file.key("embedding_length") / self.heads.count) ** -0.5
        return self.heads.width**-0.5

    def masked(self, scores: Tensor) -> Tensor:
        distance = torch.arange(scores.shape[1])[:, None] - torch.arange(scores.shape[2])[None, :]
        hidden = distance < 0
        if self.local and self.heads.window:
            hidden = hidden | (distance >= self.heads.window)
        return scores.masked_fill(hidden, float("-inf"))

    def turned(self, x: Float[Tensor, "H T W"]) -> Tensor:
        """Rotary positions: neighbours turn together in the llama family, halves in every other."""
        file, width = self.file, self.heads.turned
        local_gemma = self.local and file.family.architecture == "gemma3"
        theta = LOCAL_THETA if local_gemma else file.key("rope.freq_base", 10_000.0)
        angle = torch.arange(x.shape[1])[:, None] * theta ** -(torch.arange(0, width, 2).double() / width)
        if file.key("rope.scaling.type") == "linear" and not local_gemma:
            angle = angle / file.key("rope.scaling.factor")
        slower = file.tensor("rope_freqs.weight")
        slower = file.tensor("rope_factors_short.weight") if slower is None else slower
        angle = angle if slower is None else angle / slower
        factor = file.key("rope.scaling.attn_factor", 1.0)
        if file.key("rope.scaling.type") == "yarn":
            angle, factor = (
                angle * self.slowed(width, theta),
                factor * (1 + 0.1 * math.log(file.key("rope.scaling.factor"))),
            )
        cos, sin = (angle.cos() * factor).float(), (angle.sin() * factor).float()
        turning, rest = x[..., :width], x[..., width:]
        if file.family.permuted:
            a, b = turning[..., 0::2], turning[..., 1::2]
            return torch.cat([torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2), rest], -1)
        a, b = turning.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1)

    def slowed(self, width: int, theta: float) -> Tensor:
        """YaRN: pairs that turn often keep their speed, those that turn seldom lose it, between them by share."""
        file = self.file
        length, factor = file.key("rope.scaling.original_context_length"), file.key("rope.scaling.factor")
        ends = [width * math.log(length / (beta * 2 * math.pi)) / (2 * math.log(theta)) for beta in BETAS.values()]
        first, last = max(math.floor(ends[0]), 0), min(math.ceil(ends[1]), width - 1)
        seldom = ((torch.arange(width // 2).double() - first) / max(last - first, 0.001)).clamp(0, 1)
        return seldom / factor + (1 - seldom)

    def feed_forward(self, x: Tensor) -> Tensor:
        up = self.linear(x, "ffn_up")
        if "ffn_gate.weight" in self.weights:
            gate = self.linear(x, "ffn_gate")
        else:
            gate, up = up.chunk(2, -1)
        active = F.gelu(gate, approximate="tanh") if self.file.family.is_gemma else F.silu(gate)
        return self.linear(active * up, "ffn_down")


def read_updates(path: Path) -> dict[str, Tensor]:
    """What a LoRA adapter in GGUF adds to each weight: alpha / rank times B A."""
    check_gguf(path)
    reader = GGUFReader(path)
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    sides = {each.name: torch.from_numpy(each.data.copy()).float() for each in reader.tensors}
    found: dict[str, Tensor] = {}
    for name, a in sides.items():
        if name.endswith(".lora_a"):
            b = sides[f"{name.removesuffix('a')}b"]
            found[name.removesuffix(".lora_a")] = alpha / len(a) * (b @ a)
    return found
