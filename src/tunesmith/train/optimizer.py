"""Updates over fp32 masters: fp32 accumulation, and state as plain tensors. It knows no algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from tunesmith.distributed.mesh import Mesh
from tunesmith.track.clock import phase
from tunesmith.train.ema import Average
from tunesmith.train.holding import Short, held_of
from tunesmith.train.optimizers import OptimizerConfig
from tunesmith.train.optimizers.base import Averaging, State, parameter_groups, single
from tunesmith.train.optimizers.unified import UnifiedAdamW
from tunesmith.train.pages import Lent, Pages, open_pages
from tunesmith.train.stability import nonfinite_gradients


class Optimizer:
    """Updates the trainable parameters of a model.

    A parameter below fp32 has an fp32 master that collects its gradient and is stepped; `settings.rounding` says how
    the result comes back, and whether the master stays. States that are paged to a file are in `folder`.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        settings: OptimizerConfig,
        new_layers: Iterable[str] = (),
        seed: int = 0,
        folder: Path | None = None,
    ) -> None:
        self.parameters = parameters
        self.held = {name: held_of(name, each, settings.rounding, seed) for name, each in parameters.items()}
        self.masters = {name: held.master for name, held in self.held.items()}
        self.pages = open_pages(settings, self.masters, folder)
        self.one_by_one = self.pages is not None or any(isinstance(held, Short) for held in self.held.values())
        self.hooks = [
            parameter.register_post_accumulate_grad_hook(collector(self.masters[name]))
            for name, parameter in parameters.items()
            if self.masters[name] is not parameter
        ]
        self.groups = parameter_groups(self.masters, settings, tuple(new_layers))
        steppers = {member: stepper for stepper in self.build(settings) for member in members_of(stepper)}
        self.steppers = {name: steppers[master] for name, master in self.masters.items()}
        if self.pages is not None:
            self.page(settings, self.pages)
        self.scale = 1.0  # of the loss that is passed back
        self.average: Average | None = None
        self.aside: dict[str, Tensor] = {}  # values of masters while the parameters hold averages

    def build(self, settings: OptimizerConfig) -> list[torch.optim.Optimizer]:
        """The torch optimisers that share the parameters among them; each has its own where masters come and go."""
        groups = [[group] for group in single(self.groups)] if self.one_by_one else [self.groups]
        return [stepper for each in groups for stepper in settings.build(each)]

    def page(self, settings: OptimizerConfig, pages: Pages) -> None:
        """Begin with states in the file, where the rule begins with zeros: none of them is ever in memory before."""
        for name, master in self.masters.items():
            blank = settings.blank(name, tuple(master.shape))
            if blank and pages.keep(name, blank):
                self.steppers[name].state[master] = blank

    def set_rate(self, factor: float) -> None:
        """From now on each group learns at `factor` times its peak rate."""
        for stepper in set(self.steppers.values()):
            for group in stepper.param_groups:
                group["lr"] = factor * group["peak"]

    def complete(self, is_finite: Callable[[], bool]) -> bool:
        """Told before the last backward pass of a step; whether that pass is wanted."""
        return True

    def finish(self, mesh: Mesh) -> float:
        """Sum the gradients over ranks, their scale taken away; returns their norm."""
        gradients = self.gradients()
        if self.scale != 1:
            for gradient in gradients:
                gradient.mul_(1 / self.scale)
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
                master.grad = zeros(master)
        return [master.grad for master in self.masters.values() if master.grad is not None]

    @phase("optimizer")
    def step(self) -> None:
        """One update at the rate that was set."""
        if self.one_by_one:
            for name in self.held:
                self.step_one(name)
            return
        for stepper in set(self.steppers.values()):
            stepper.step()
        with torch.no_grad():
            for held in self.held.values():
                held.narrow()

    @torch.no_grad()
    def step_one(self, name: str) -> None:
        """One update of a parameter that has a stepper of its own."""
        self.held[name].widen()
        self.steppers[name].step()
        self.held[name].narrow()
        if self.pages is not None:
            self.pages.keep(name, self.steppers[name].state[self.masters[name]])

    def release(self) -> None:
        """Let go of the parameters, which another optimizer takes over."""
        self.clear()
        for hook in self.hooks:
            hook.remove()

    def close(self) -> None:
        """Let go of the states, and of the file they are in."""
        if self.pages is not None:
            for stepper in self.steppers.values():
                stepper.state.clear()
            self.pages.close()

    def clear(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None
        for master in self.masters.values():
            master.grad = None

    def state(self) -> Mapping[str, Tensor]:
        """Moments, step counts and masters as `name.kind` tensors, for a checkpoint; paged ones one by one."""
        tensors: dict[str, Tensor] = {}
        for name, master in self.masters.items():
            state = states_of(self.steppers[name], master)
            tensors |= {f"{name}.{kind}": value for kind, value in state.items() if isinstance(value, Tensor)}
            held = self.held[name]
            tensors |= {f"{name}.{kind}": value for kind, value in held.state().items()}
            if self.average is not None:
                tensors[f"{name}.average"] = self.average.values[name]
            if held.has_copy or self.is_averaged(name):
                tensors[f"{name}.master"] = self.aside.get(name, held.kept)
        return tensors if self.pages is None else Lent(tensors, self.pages)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state, one parameter after the other; the parameters hold their restored values already."""
        kinds: dict[str, list[str]] = {}
        for key in tensors:
            name, _, kind = key.rpartition(".")
            kinds.setdefault(name, []).append(kind)
        for name, master in self.masters.items():
            state, stepper = {kind: tensors[f"{name}.{kind}"] for kind in kinds.get(name, ())}, self.steppers[name]
            with torch.no_grad():
                self.held[name].restore(state)
                if self.average is not None:
                    self.average.values[name].copy_(state.pop("average"))
            if state and isinstance(stepper, UnifiedAdamW):
                stepper.adopt(master, state)
            elif state:
                stepper.state[master] = {
                    kind: value.to("cpu" if counts_here(stepper, kind) else master.device).clone()
                    for kind, value in state.items()
                }
                if self.pages is not None:
                    self.pages.keep(name, stepper.state[master])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Meanwhile the parameters hold the weights to use, where those are averages of what is trained."""
        self.settle()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self.aside.items():
                    self.held[name].take(value)
            self.aside = {}

    @torch.no_grad()
    def settle(self) -> None:
        """Leave the weights to use in the parameters; what was trained is put aside."""
        for name, master in self.masters.items():
            stepper, held = self.steppers[name], self.held[name]
            if self.is_averaged(name):
                self.aside[name] = held.kept.clone()
                held.widen()
                held.show(stepper.average(master) if isinstance(stepper, Averaging) else self.average_of(name))
                if self.pages is not None:
                    self.pages.drop(name)

    def is_averaged(self, name: str) -> bool:
        """Whether the weights to use are others than those that are trained."""
        return self.average is not None or isinstance(self.steppers[name], Averaging)

    def average_of(self, name: str) -> Tensor:
        assert self.average is not None
        return self.average.values[name]


def members_of(stepper: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [member for group in stepper.param_groups for member in group["params"]]


def states_of(stepper: torch.optim.Optimizer, master: nn.Parameter) -> State:
    return stepper.kept(master) if isinstance(stepper, UnifiedAdamW) else stepper.state.get(master, {})


def counts_here(stepper: torch.optim.Optimizer, kind: str) -> bool:
    """Whether it is a count of steps that is read on the host; fused kernels have it on the device."""
    return kind == "step" and not stepper.defaults.get("fused")


def zeros(master: nn.Parameter) -> Tensor:
    """A gradient of zeros; a master without memory has a shape all the same."""
    return torch.zeros(master.shape, device=master.device)


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
