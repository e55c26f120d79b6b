"""AdamW over fp32 masters: parameter groups, fp32 accumulation, and state as plain tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from tunesmith.distributed.mesh import Mesh
from tunesmith.track.clock import phase
from tunesmith.train.config import OptimizerConfig
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
        self.steppers = self.make_steppers(settings)

    def make_steppers(self, settings: OptimizerConfig) -> dict[str, torch.optim.AdamW]:
        """The torch optimizer that updates each parameter: one for all of them."""
        return dict.fromkeys(self.masters, adamw(self.groups, settings))

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
            tensors |= {f"{name}.{kind}": value for kind, value in self.steppers[name].state.get(master, {}).items()}
            if master is not self.parameters[name]:
                tensors[f"{name}.master"] = master.detach()
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over a state; the parameters hold their restored values already."""
        for name, master in self.masters.items():
            kinds = ("step", "exp_avg", "exp_avg_sq")
            if f"{name}.step" in tensors:
                state = {kind: tensors[f"{name}.{kind}"].to(master.device).clone() for kind in kinds}
                self.steppers[name].state[master] = state
            if master is self.parameters[name]:
                continue
            with torch.no_grad():
                master.copy_(tensors.get(f"{name}.master", self.parameters[name]))
                self.parameters[name].copy_(master)


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


def parameter_groups(
    masters: dict[str, nn.Parameter], settings: OptimizerConfig, new_layers: tuple[str, ...]
) -> list[dict]:
    """At most four groups: matrices decay, norms and biases do not; new layers may have a rate of their own."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, master in masters.items():
        is_new = any(layer in name for layer in new_layers)
        rate = settings.lr_new_layers if is_new and settings.lr_new_layers is not None else settings.lr
        decay = settings.weight_decay if master.ndim >= 2 else 0.0
        groups.setdefault((rate, decay), []).append(master)
    return [
        {"params": members, "lr": rate, "peak": rate, "weight_decay": decay}
        for (rate, decay), members in groups.items()
    ]


def adamw(groups: list[dict], settings: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True
    )


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
