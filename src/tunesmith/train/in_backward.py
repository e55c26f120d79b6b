"""The optimiser step inside the backward pass: a gradient is used up as soon as it is complete."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import Fix, UsageError, Where
from tunesmith.track.clock import phase
from tunesmith.train.optimizer import Optimizer, gradient_norm, zeros
from tunesmith.train.optimizers import OptimizerConfig
from tunesmith.train.optimizers.base import single


def make_optimizer(
    parameters: dict[str, nn.Parameter],
    settings: OptimizerConfig,
    new_layers: Iterable[str],
    mesh: Mesh,
    seed: int = 0,
    folder: Path | None = None,
) -> Optimizer:
    """The optimizer that the settings ask for; UsageError E189 for one that several ranks cannot have."""
    if not settings.in_backward:
        return Optimizer(parameters, settings, new_layers, seed, folder)
    if mesh.world > 1:
        key = "train.optimizer.in_backward"
        raise UsageError(
            "E189",
            f"{mesh.world} processes add up their gradients after the backward pass, so none can be used up inside it",
            where=Where(field=key),
            fixes=[Fix(f"{key}=false", {key: False}), Fix("start one process")],
        )
    return BackwardOptimizer(parameters, settings, new_layers, seed, folder)


class BackwardOptimizer(Optimizer):
    """Updates each parameter as soon as its gradient is complete, and frees the gradient (arXiv:2306.09782).

    Gradients are complete in the last backward pass of a step; what microbatches before it leave adds up as ever. The
    update is the ordinary one to the bit, but it cannot be undone and nothing is clipped: the loss of the whole step is
    looked at before the last pass, and a gradient that is not finite leaves its own parameter as it is, no other.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        settings: OptimizerConfig,
        new_layers: Iterable[str] = (),
        seed: int = 0,
        folder: Path | None = None,
    ) -> None:
        super().__init__(parameters, settings, new_layers, seed, folder)
        self.is_last = False
        self.norms: dict[str, Tensor] = {}  # of the gradients that this step has used up
        for name, parameter in parameters.items():  # behind the hooks that collect for masters
            self.hooks.append(parameter.register_post_accumulate_grad_hook(updater(self, name)))

    def build(self, settings: OptimizerConfig) -> list[torch.optim.Optimizer]:
        """One of its own for each parameter."""
        return [stepper for group in single(self.groups) for stepper in settings.build([group])]

    def complete(self, is_finite: Callable[[], bool]) -> bool:
        self.is_last = is_finite()
        return self.is_last

    @phase("optimizer")
    def update(self, name: str) -> None:
        """One step of one parameter, whose gradient is let go; without effect where that is not finite."""
        master = self.masters[name]
        assert master.grad is not None
        norm = torch.nn.utils.get_total_norm([master.grad], foreach=True)
        stepper = self.steppers[name]
        if stepper.defaults.get("fused"):  # decides on the device
            stepper.found_inf = norm.isfinite().logical_not().float()  # pyright: ignore[reportAttributeAccessIssue]
            self.step_one(name)
        elif bool(norm.isfinite()):
            self.step_one(name)
        master.grad = None
        self.norms[name] = norm

    def finish(self, mesh: Mesh) -> float:
        """Update what no loss reached in the last pass; returns the norm of all gradients, NaN after a NaN loss."""
        if not self.is_last:
            return math.nan
        for name, master in self.masters.items():
            if name not in self.norms:
                master.grad = zeros(master) if master.grad is None else master.grad
                self.update(name)
        return gradient_norm([self.norms[name] for name in self.masters])

    @property
    def has_updated(self) -> bool:
        return bool(self.norms)

    def nonfinite(self) -> list[str]:
        return [name for name, norm in self.norms.items() if not bool(norm.isfinite())][:5]

    def gradients(self) -> list[Tensor]:
        """None: they are used up."""
        return []

    def step(self) -> None:
        """Nothing: it was done."""

    def clear(self) -> None:
        super().clear()
        self.is_last = False
        self.norms = {}


def updater(optimizer: BackwardOptimizer, name: str) -> Callable[[Tensor], None]:
    """A hook that updates a parameter in the last backward pass of a step."""

    def update(parameter: Tensor) -> None:
        if optimizer.is_last:
            optimizer.update(name)

    return update
