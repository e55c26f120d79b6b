"""Which token comes next: one sampler for whole batches, and for rows that each have settings of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tunesmith.errors import NumericalError

TOP = 512  # most likely tokens looked at first; only a flatter distribution is sorted whole
SMALLEST, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; temperature 0 takes the most likely one.

    Penalties come first: what is in the prompt or the answer is divided (if negative, multiplied) by `repetition`
    (arXiv:1909.05858), what is in the answer loses `presence`, and `frequency` for each time. Then `top_k` tokens stay,
    of these the fewest with `top_p` of the mass, and of these those at least `min_p` as likely as the likeliest.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    min_p: float = 0.0
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    bias: tuple[tuple[int, float], ...] = ()  # (token, what is added to its logit)
    until: tuple[str, ...] = ()  # texts that end an answer of `generate`, which they are still part of

    @property
    def looks_back(self) -> bool:
        """Whether the answer so far changes what comes next beyond what the model sees."""
        return bool(self.presence or self.frequency or self.bias or self.repetition != 1)


@dataclass(frozen=True, slots=True)
class Chooser:
    """What one row brings to its next token: settings, a uniform number unless it is greedy, and its tokens.

    Where `allowed` is given, no other token is chosen.
    """

    sampling: Sampling
    draw: Tensor | None
    prompt: Sequence[int] = ()
    made: Sequence[int] = ()
    allowed: Bool[Tensor, " V"] | None = None


def choose_each(logits: Float[Tensor, "B V"], rows: Sequence[Chooser]) -> list[int]:
    """The next token of every row; a row's token does not depend on the rows beside it."""
    logits = adjusted(logits, rows)
    groups: dict[Sampling, list[int]] = {}
    for at, row in enumerate(rows):
        groups.setdefault(shape_of(row.sampling), []).append(at)
    picked = [0] * len(rows)
    for sampling, places in groups.items():
        own = logits if len(groups) == 1 else logits[torch.tensor(places, device=logits.device)]
        found = [rows[at].draw for at in places]
        draws = None if sampling.temperature == 0 else torch.stack([draw for draw in found if draw is not None])
        for at, token in zip(places, choose(own, sampling, draws).tolist(), strict=True):
            picked[at] = token
    return picked


def shape_of(sampling: Sampling) -> Sampling:
    """The settings that rows must share to be drawn together."""
    plain = Sampling(0, sampling.temperature)
    if sampling.temperature == 0:
        return plain
    return replace(plain, top_p=sampling.top_p, top_k=sampling.top_k, min_p=sampling.min_p)


def adjusted(logits: Float[Tensor, "B V"], rows: Sequence[Chooser]) -> Float[Tensor, "B V"]:
    """With penalties, and without what is not allowed; the logits themselves where no row asks for any."""
    changed = [at for at, row in enumerate(rows) if row.sampling.looks_back or row.allowed is not None]
    if not changed:
        return logits
    logits = logits.float().clone()
    for at in changed:
        row = rows[at]
        if row.sampling.looks_back:
            penalise(logits[at], row.sampling, row.prompt, row.made)
        if row.allowed is not None:
            logits[at].masked_fill_(~row.allowed, float("-inf"))
    return logits


def penalise(logits: Float[Tensor, " V"], sampling: Sampling, prompt: Sequence[int], made: Sequence[int]) -> None:
    """In place. Finite logits stay finite, whatever the settings."""
    counts = Counter(made)
    if sampling.repetition != 1:
        factor = min(max(sampling.repetition, SMALLEST), LARGEST)
        seen = torch.tensor(sorted({*prompt, *counts}), device=logits.device)
        found = logits[seen]
        logits[seen] = torch.where(found > 0, found / factor, found * factor).clamp(-LARGEST, LARGEST)
    if counts and (sampling.presence or sampling.frequency):
        ids = torch.tensor(list(counts), device=logits.device)
        times = torch.tensor(list(counts.values()), device=logits.device)
        taken = bounded(sampling.presence) + bounded(sampling.frequency) * times.double()
        logits[ids] -= taken.clamp(-LARGEST, LARGEST).float()
    for token, added in sampling.bias:
        logits[token] += bounded(added)
    logits.clamp_(-LARGEST, LARGEST)


def bounded(value: float) -> float:
    """Within what fp32 holds."""
    return min(max(value, -LARGEST), LARGEST)


def choose(logits: Float[Tensor, "B V"], sampling: Sampling, draw_B: Float[Tensor, " B"] | None) -> Int[Tensor, " B"]:
    """The most likely token (the lowest id of equals), or the one where the draw falls in the distribution function."""
    logits = logits.float()
    if draw_B is None:
        return logits.max(-1).indices
    below = logits - logits.max(-1, keepdim=True).values  # no temperature makes these infinite upwards
    probabilities = narrowed((below / min(max(sampling.temperature, SMALLEST), LARGEST)).softmax(-1), sampling)
    sums = probabilities.cumsum(-1)
    total = sums[:, -1:]
    goal = torch.minimum(draw_B.to(sums)[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(sums, goal, right=True)[:, 0]


def narrowed(probabilities: Float[Tensor, "B V"], sampling: Sampling) -> Float[Tensor, "B V"]:
    """Zero for the tokens that top-k, top-p and min-p leave out."""
    if 0 < sampling.top_k < probabilities.shape[-1]:
        least = probabilities.topk(sampling.top_k).values[:, -1:]
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    if sampling.top_p < 1:
        probabilities = nucleus(probabilities, sampling.top_p)
    if sampling.min_p > 0:
        likeliest = probabilities.max(-1, keepdim=True).values
        probabilities = probabilities.masked_fill(probabilities < min(sampling.min_p, 1.0) * likeliest, 0.0)
    return probabilities


def nucleus(probabilities: Float[Tensor, "B V"], top_p: float) -> Float[Tensor, "B V"]:
    """Zero outside the fewest tokens that hold `top_p` of the mass (arXiv:1904.09751); equals of the last one stay."""
    count = probabilities.shape[-1]
    tops = probabilities.topk(min(TOP, count)).values
    if (tops.sum(-1) < top_p).any():
        tops = probabilities.sort(-1, descending=True).values
    kept = (tops.cumsum(-1) - tops < top_p).sum(-1, keepdim=True).clamp(min=1)  # fp32 holds no 1e-300
    return probabilities.masked_fill(probabilities < tops.gather(-1, kept - 1), 0.0)


def row_draws(name: tuple[int, ...], room: int, sampling: Sampling) -> Float[Tensor, " R"]:
    """One uniform number per token of an answer; more room adds numbers behind the same ones."""
    seed = np.random.SeedSequence([sampling.seed, *name]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(seed) % 2**63)
    return torch.rand(room, generator=generator, dtype=torch.float64)


def check_finite(logits: Tensor) -> None:
    if not torch.isfinite(logits).all():
        raise not_finite()


def not_finite() -> NumericalError:
    return NumericalError(
        "E151",
        "the model's predictions are not finite numbers, so it cannot answer",
        fixes=["check the weights: an adapter or checkpoint with NaN was loaded"],
    )
