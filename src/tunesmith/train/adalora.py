"""AdaLoRA (arXiv:2303.10512, algorithm 1): orthogonal factors, and singular values that are cut to a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tunesmith.models.adalora_config import AdaloraConfig
from tunesmith.train.optimizer import Optimizer, gradient_norm
from tunesmith.train.step import StepResult
from tunesmith.train.tuning import Make, Tuning

VALUES, LEFT, RIGHT = ".lora_E.", ".lora_B.", ".lora_A."  # Λ, P and Q in the names of parameters


class Adalora(Tuning):
    """Adds the slope of |PᵀP - I|² + |QQᵀ - I|² to the gradients, and cuts Λ after updates.

    Importance is a mean of |weight x gradient| times a mean of how far it strays. Between cuts every value learns; from
    the last cut on, those that were cut stay 0, and the means are let go.
    """

    def __init__(self, settings: AdaloraConfig, total: int) -> None:
        self.settings = settings
        self.before_cuts, self.last_cut = settings.phases(total)
        self.parameters: dict[str, nn.Parameter] = {}
        self.kept: dict[str, Bool[Tensor, " R"]] = {}  # by the name of Λ
        self.means: dict[str, tuple[Tensor, Tensor]] = {}  # importance and its uncertainty, until the last cut

    def start(self, parameters: dict[str, nn.Parameter], make: Make) -> Optimizer:
        sides = (VALUES, LEFT, RIGHT)
        self.parameters = {name: each for name, each in parameters.items() if any(side in name for side in sides)}
        values = [name for name in self.parameters if VALUES in name]
        self.kept = {name: torch.ones_like(self.parameters[name].data.view(-1), dtype=torch.bool) for name in values}
        zeros = torch.zeros_like
        self.means = {name: (zeros(each.data), zeros(each.data)) for name, each in self.parameters.items()}
        self.first = sum(map(len, self.kept.values()))
        self.target = min(self.first, self.settings.rank * len(values))
        return make(parameters)

    @torch.no_grad()
    def weigh(self, result: StepResult, optimizer: Optimizer) -> StepResult:
        gradients, strength = optimizer.gradients(), self.settings.orthogonality
        strayed = []
        for name, parameter in self.parameters.items():
            if VALUES in name:
                continue
            rows = parameter if RIGHT in name else parameter.T
            excess = rows @ rows.T - torch.eye(len(rows), device=rows.device)
            strayed.append(excess.square().sum())
            slope = 4 * strength * excess @ rows
            assert parameter.grad is not None
            parameter.grad.add_(slope if RIGHT in name else slope.T)
        told = {
            "orthogonality": torch.stack(strayed).sum().item(),
            "rank": sum(int(mask.sum()) for mask in self.kept.values()) / len(self.kept),
        }
        return replace(result, grad_norm=gradient_norm(gradients), metrics={**result.metrics, **told})

    @torch.no_grad()
    def after(self, step: int, optimizer: Optimizer) -> None:
        if step < self.last_cut:
            self.note()
            if step > self.before_cuts and step % self.settings.every == 0:
                self.choose(self.budget(step))
                self.cut()
            return
        if self.means:
            self.choose(self.target)
            self.means = {}
        self.cut()

    def budget(self, step: int) -> int:
        """Singular values that are left after the cut of this step."""
        rest = 1 - (step - self.before_cuts) / (self.last_cut - self.before_cuts)
        return int((self.first - self.target) * rest**3 + self.target)

    def note(self) -> None:
        """Take this step's weights and gradients into the means (eq. 8 to 10)."""
        beta1, beta2 = self.settings.beta1, self.settings.beta2
        for name, (importance, uncertainty) in self.means.items():
            parameter = self.parameters[name]
            assert parameter.grad is not None
            found = (parameter * parameter.grad).abs_()
            importance.lerp_(found, 1 - beta1)
            uncertainty.lerp_(found.sub_(importance).abs_(), 1 - beta2)

    def score(self, name: str) -> Float[Tensor, " R"]:
        """How much each singular value of a layer matters, with its two vectors (eq. 7)."""
        values, left, right = (
            importance * uncertainty
            for importance, uncertainty in (self.means[name.replace(VALUES, side)] for side in (VALUES, LEFT, RIGHT))
        )
        return values.view(-1) + left.mean(0) + right.mean(1)

    def choose(self, budget: int) -> None:
        """Keep as many of all layers' singular values as the budget says; of equal ones those that come first."""
        order = torch.cat([self.score(name) for name in self.kept]).argsort(descending=True, stable=True)
        chosen = torch.zeros_like(order, dtype=torch.bool)
        chosen[order[:budget]] = True
        parts = chosen.split([len(mask) for mask in self.kept.values()])
        self.kept = {name: part.clone() for name, part in zip(self.kept, parts, strict=True)}

    def cut(self) -> None:
        for name, mask in self.kept.items():
            self.parameters[name].masked_fill_(~mask[:, None], 0.0)

    def state(self) -> dict[str, Tensor]:
        found = {f"{name}.kept": mask for name, mask in self.kept.items()}
        for name, (importance, uncertainty) in self.means.items():
            found |= {f"{name}.importance": importance, f"{name}.uncertainty": uncertainty}
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        def read(name: str, kind: str) -> Tensor:
            return tensors[f"{name}.{kind}"].to(self.parameters[name].device, copy=True)

        self.kept = {name: read(name, "kept") for name in self.kept}
        running = any(key.endswith(".importance") for key in tensors)
        names = self.parameters if running else ()
        self.means = {name: (read(name, "importance"), read(name, "uncertainty")) for name in names}
