"""The frozen model that preference losses compare with: adapters switched off, the weights at the start, or another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tunesmith.models.adapters import Adapted
from tunesmith.models.forward import score_only
from tunesmith.types import Batch


class Reference(Protocol):
    """Log-probabilities (K,) of a batch's scored tokens, without gradient."""

    def logprobs(self, batch: Batch) -> Float[Tensor, " K"]: ...


class AdapterOff:
    """The base model below the adapter; equals the start of a run when the adapter is new, and costs no memory."""

    def __init__(self, model: Adapted) -> None:
        self.model = model

    def logprobs(self, batch: Batch) -> Float[Tensor, " K"]:
        with self.model.disable_adapter():
            return score_only(self.model, batch).logprobs


class StartWeights:
    """The model with the trained parameters as they were when this was made (algorithm independent, an exact copy)."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.start = {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    def logprobs(self, batch: Batch) -> Float[Tensor, " K"]:
        with self.in_place():
            return score_only(self.model, batch).logprobs

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model holds the kept weights; no number is copied."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def follow(self, mix: float) -> None:
        """Kept weights <- mix * current + (1 - mix) * kept (TR-DPO, arXiv:2404.09656)."""
        for name, parameter in self.trained.items():
            self.start[name].lerp_(parameter.detach(), mix)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, kept in self.start.items():
            kept.copy_(tensors[name])

    def _exchange(self) -> None:
        for name, parameter in self.trained.items():
            parameter.data, self.start[name] = self.start[name], parameter.data


class OtherModel:
    """A model of its own, with the same vocabulary."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def logprobs(self, batch: Batch) -> Float[Tensor, " K"]:
        return score_only(self.model, batch).logprobs


class Computed:
    """A reference whose figures were all computed before; there is no model to ask any more."""

    def logprobs(self, batch: Batch) -> Float[Tensor, " K"]:
        raise AssertionError(f"no log-probabilities of the reference for {', '.join(batch.records[:3])}")
