"""The frozen model that preference losses compare with: adapters switched off, the weights at the start, or another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from tunesmith.models.adapters import Adapted
from tunesmith.models.forward import active_module, base_model, score_only, states_only
from tunesmith.types import Batch, Distribution


class Reference(Protocol):
    """Log-probabilities (K,) of a batch's scored tokens, without gradient."""

    def logprobs(self, batch: Batch) -> Float[Tensor, " K"]: ...


class Distributions(Protocol):
    """The reference's whole distributions of next tokens; computed anew for every batch, and kept nowhere."""

    def distribution(self, batch: Batch) -> Distribution: ...


class AdapterOff:
    """The base model below the adapter; equals the start of a run when the adapter is new, and costs no memory."""

    def __init__(self, model: Adapted) -> None:
        self.model = model

    def logprobs(self, batch: Batch) -> Float[Tensor, " K"]:
        with self.model.disable_adapter():
            return score_only(self.model, batch).logprobs

    def distribution(self, batch: Batch) -> Distribution:
        head = base_model(self.model).get_output_embeddings()
        assert head is not None
        with self.model.disable_adapter():
            return Distribution(states_only(self.model, batch), held(unwrapped(head)))


class StartWeights:
    """The model with the trained parameters as they were when this was made (algorithm independent, an exact copy)."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.start = {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    def logprobs(self, batch: Batch) -> Float[Tensor, " K"]:
        with self.in_place():
            return score_only(self.model, batch).logprobs

    def distribution(self, batch: Batch) -> Distribution:
        head = base_model(self.model).get_output_embeddings()
        assert head is not None
        with self.in_place():
            return Distribution(states_only(self.model, batch), held(active_module(head)))

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


def unwrapped(head: nn.Module) -> nn.Module:
    """The head below an adapter."""
    if isinstance(head, ModulesToSaveWrapper):
        return head.original_module
    return head.get_base_layer() if isinstance(head, BaseTunerLayer) else head


def held(head: nn.Module) -> nn.Linear:
    """A frozen head with the numbers that a linear one has now, not copied; others may then take their place there."""
    assert isinstance(head, nn.Linear)
    assert not isinstance(head, BaseTunerLayer), "a head with an adapter is refused"
    kept = nn.Linear(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
    kept.weight = nn.Parameter(head.weight.data, requires_grad=False)
    if head.bias is not None:
        kept.bias = nn.Parameter(head.bias.data, requires_grad=False)
    return kept


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
