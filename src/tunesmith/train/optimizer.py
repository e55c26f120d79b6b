"""Updates over fp32 masters: fp32 accumulation, and state as plain tensors. It knows no algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tunesmith.distributed.mesh import Mesh
from tunesmith.track.clock import phase
from tunesmith.train.optimizers import OptimizerConfig
from tunesmith.train.optimizers.base import Averaging, parameter_groups
from tunesmith.train.stability import nonfinite_gradients


class Optimizer:
    """Updates the trainable parameters of a model.

    A parameter below fp32 gets an fp32 master that collects its gradient, is stepped, and is copied back.
    """

    def __init__(
        self, parameters: dict[str, nn.Parameter], settings: OptimizerConfig, new_layers: Iterable[str] = ()
    ) -> None:
        self.parameters = parameters
        self.masters = {name: master_of(parameter) for name, parameter in parameters.items()}
        self.hooks = [
            parameter.register_post_accumulate_grad_hook(collector(self.masters[name]))
            for name, parameter in parameters.items()
            if self.masters[name] is not parameter
        ]
        self.groups = parameter_groups(self.masters, settings, tuple(new_layers))
        steppers = {member: stepper for stepper in self.build(settings) for member in members_of(stepper)}
        self.steppers = {name: steppers[master] for name, master in self.masters.items()}
        self.aside: dict[str, Tensor] = {}  # values of masters while the parameters hold averages

    def build(self, settings: OptimizerConfig) -> list[torch.optim.Optimizer]:
        """The torch optimisers that share the parameters among them."""
        return settings.build(self.groups)

    def set_rate(self, factor: float) -> None:
        """From now on each group learns at `factor` times its peak rate."""
        for stepper in set(self.steppers.values()):
            for group in stepper.param_groups:
                group["lr"] = factor * group["peak"]

    def complete(self, is_finite: Callable[[], bool]) -> bool:
        """Told before the last backward pass of a step; whether that pass is wanted."""
        return True

    def finish(self, mesh: Mesh) -> float:
        """Sum the gradients over ranks; returns their norm."""
        gradients = self.gradients()
        with phase("between ranks"):
            mesh.sum_gradients(gradients)
        return gradient_norm(gradients)

    @property
    def has_updated(self) -> bool:
        """Whether some parameters of this step were updated before `step`."""
        return False

    def nonfinite(self) -> list[str]:
        """Names of the first parameters whose gradient holds NaN or Inf."""
        return nonfinite_gradients(self.masters.items())

    def gradients(self) -> list[Tensor]:
        """Every master's gradient, zeros where no loss reached it, in a fixed order."""
        for master in self.masters.values():
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        return [master.grad for master in self.masters.values() if master.grad is not None]

    @phase("optimizer")
    def step(self) -> None:
        """One update at the rate that was set."""
        for stepper in set(self.steppers.values()):
            stepper.step()
        for name in self.masters:
            self.copy_back(name)

    @torch.no_grad()
    def copy_back(self, name: str) -> None:
        """The master's new value to the parameter below fp32."""
        if self.masters[name] is not self.parameters[name]:
            self.parameters[name].copy_(self.masters[name])

    def clear(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None
        for master in self.masters.values():
            master.grad = None

    def state(self) -> dict[str, Tensor]:
        """Moments, step counts and masters as `name.kind` tensors, for a checkpoint."""
        tensors: dict[str, Tensor] = {}
        for name, master in self.masters.items():
            state = self.steppers[name].state.get(master, {})
            tensors |= {f"{name}.{kind}": value for kind, value in state.items() if isinstance(value, Tensor)}
            if master is not self.parameters[name] or isinstance(self.steppers[name], Averaging):
                tensors[f"{name}.master"] = self.aside.get(name, master.detach())
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over a state; the parameters hold their restored values already."""
        found: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, _, kind = key.rpartition(".")
            found.setdefault(name, {})[kind] = value
        for name, master in self.masters.items():
            state, stepper = found.get(name, {}), self.steppers[name]
            with torch.no_grad():
                master.copy_(state.pop("master", self.parameters[name]))
            self.copy_back(name)
            if state:
                stepper.state[master] = {
                    kind: value.to("cpu" if counts_here(stepper, kind) else master.device).clone()
                    for kind, value in state.items()
                }

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Meanwhile the parameters hold the weights to use, where those are averages of what is trained."""
        self.settle()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self.aside.items():
                    self.masters[name].copy_(value)
                    self.copy_back(name)
            self.aside = {}

    @torch.no_grad()
    def settle(self) -> None:
        """Leave the weights to use in the parameters; what was trained is put aside."""
        for name, master in self.masters.items():
            stepper = self.steppers[name]
            if isinstance(stepper, Averaging):
                self.aside[name] = master.detach().clone()
                master.copy_(stepper.average(master))
                self.copy_back(name)


def members_of(stepper: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [member for group in stepper.param_groups for member in group["params"]]


def counts_here(stepper: torch.optim.Optimizer, kind: str) -> bool:
    """Whether it is a count of steps that is read on the host; fused kernels have it on the device."""
    return kind == "step" and not stepper.defaults.get("fused")


def master_of(parameter: nn.Parameter) -> nn.Parameter:
    if parameter.dtype == torch.float32:
        return parameter
    return nn.Parameter(parameter.detach().float())


def collector(master: nn.Parameter):
    """A hook that moves a finished gradient into the master's fp32 one and frees it."""

    def collect(parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        parameter.grad = None

    return collect


@phase("clip")
@torch.no_grad()
def gradient_norm(gradients: list[Tensor]) -> float:
    """Euclidean norm over all gradients together; NaN or Inf comes through."""
    return torch.nn.utils.get_total_norm(gradients, foreach=True).item()


@phase("clip")
@torch.no_grad()
def clip(gradients: list[Tensor], norm: float, limit: float) -> None:
    """Scale the gradients down to `limit` when `norm` exceeds it; a limit of 0 never clips."""
    if limit > 0 and norm > limit:
        for gradient in gradients:
            gradient.mul_(limit / (norm + 1e-6))
