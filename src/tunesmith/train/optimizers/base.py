"""What every optimiser has in common: its settings, its parameter groups, and the shape of an own update rule."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from tunesmith.config import Config
from tunesmith.models.inventory import LAYER
from tunesmith.train.holding import Rounding

Group = dict[str, Any]  # torch's, with the `names` of its `params` and its `peak` rate
State = dict[str, Tensor]
EMBEDDED = re.compile(r"(?:^|\.)(embed_tokens|wte|word_embeddings|embed_in)\.")
FACTOR_A, FACTOR_B = re.compile(r"\.lora_(embedding_)?A\b"), re.compile(r"\.lora_(embedding_)?B\b")
Rate = Annotated[float, Field(gt=0, le=10)]
Share = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """The settings that every optimiser has; a subclass adds its own, its update rule and the size of its state.

    `rate_scale` is its usual learning rate as a multiple of AdamW's; None: its rates are of another kind.
    """

    rate_scale: ClassVar[float | None] = 1.0

    name: str
    lr: Rate = Field(default=2e-4, description="Peak learning rate. LoRA: 1e-4 to 5e-4; full: 1e-5 to 5e-5.")
    weight_decay: Share = Field(
        default=0.0, description="Decoupled weight decay per step; never applied to norms and biases."
    )
    lr_new_layers: Rate | None = Field(
        default=None, description="Own rate for modules_to_save; the peak rate when empty."
    )
    lr_ratio_b: Annotated[float, Field(ge=1, le=1000)] = Field(
        default=1.0,
        description="LoRA+ (arXiv:2402.12354): the factor B, which starts at 0, learns this many times as fast as A; "
        "about 16.",
    )
    lr_layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Rate of a layer as a share of that of the layer above it; embeddings are the lowest."
    )
    rounding: Rounding = Field(
        default="masters",
        description="How updates reach weights below fp32: by fp32 masters (4 bytes each); in bf16 alone, rounded up "
        "or down by chance (stochastic), or with what rounding left in bf16 beside them (kahan, 2 bytes).",
    )
    in_backward: bool = Field(
        default=False,
        description="Update each parameter in the backward pass and free its gradient; needs clip_norm=0.",
    )
    paging: Literal["off", "auto", "file"] = Field(
        default="off",
        description="Keep states out of memory, but for those of the parameter at work. file: on disk, on a CPU; auto: "
        "as the device can, which on a GPU is bitsandbytes' paged optimiser.",
    )
    paging_folder: str | None = Field(
        default=None, description="Where the file of paged states is, on a disk of its own; empty: the run's folder."
    )

    def for_heads(self, width: int) -> Self:
        """The same for a model whose attention heads have so many rows each."""
        return self

    @property
    def settling_steps(self) -> int | None:
        """Steps that the mean of squares takes to settle; None without one that forgets evenly."""
        return None

    def build(self, groups: list[Group]) -> list[torch.optim.Optimizer]:
        """Optimisers that share the parameters of all groups among them."""
        raise NotImplementedError

    def blank(self, name: str, shape: tuple[int, ...]) -> State:
        """The state before the first step, of zeros that take no memory; empty where it is left to the rule."""
        return {}

    def state_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        """What the state of one parameter takes, without counters of a few bytes."""
        raise NotImplementedError


class AdamConfig(OptimizerConfig):
    """An optimiser with Adam's two means."""

    beta1: Share = Field(default=0.9, description="Decay of the mean of gradients.")
    beta2: Share = Field(default=0.999, description="Decay of the mean of squares.")
    eps: Annotated[float, Field(gt=0)] = Field(default=1e-8, description="Added to the root of the mean of squares.")

    @property
    def settling_steps(self) -> int | None:
        """2 / (1 - beta2), the untuned warm-up of arXiv:1910.04209."""
        return round(2 / (1 - self.beta2))

    def adamw(self, groups: list[Group]) -> list[torch.optim.Optimizer]:
        """Torch's AdamW, for all parameters or for those that a rule has no use for."""
        if not groups:
            return []
        return [torch.optim.AdamW(groups, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps, fused=True)]


def blank_means(shape: tuple[int, ...]) -> State:
    """As torch's AdamW begins."""
    nothing = torch.zeros(()).expand(shape)
    return {"step": torch.zeros(()), "exp_avg": nothing, "exp_avg_sq": nothing}


class Rule(torch.optim.Optimizer):
    """An update rule of our own, one parameter at a time; its state is tensors under names without a dot."""

    def __init__(self, groups: list[Group]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                if parameter.grad is not None:
                    self.update(name, parameter, self.state[parameter], group)

    def update(self, name: str, parameter: nn.Parameter, state: State, group: Group) -> None:
        """Change one parameter by its gradient, and the state that it has; an empty one is to be filled."""
        raise NotImplementedError


class Averaging(Rule):
    """A rule whose parameters are where gradients are taken, and not the weights to use."""

    def average(self, parameter: nn.Parameter) -> Tensor:
        """The weights to use, in a tensor of their own."""
        raise NotImplementedError


def parameter_groups(
    masters: dict[str, nn.Parameter], settings: OptimizerConfig, new_layers: tuple[str, ...]
) -> list[Group]:
    """Parameters of one rate and one decay together: matrices decay, norms and biases do not."""
    top = max((layer for name in masters if (layer := layer_of(name)) is not None), default=0)
    groups: dict[tuple[float, float], list[str]] = {}
    for name, master in masters.items():
        is_new = any(layer in name for layer in new_layers)
        rate = settings.lr_new_layers if is_new and settings.lr_new_layers is not None else settings.lr
        if settings.lr_ratio_b != 1 and follows_b(name, master.ndim):
            rate *= settings.lr_ratio_b
        if settings.lr_layer_decay != 1:
            rate *= settings.lr_layer_decay ** below_top(name, top)
        decay = settings.weight_decay if master.ndim >= 2 else 0.0
        groups.setdefault((rate, decay), []).append(name)
    return [
        {"names": names, "params": [masters[name] for name in names], "lr": rate, "peak": rate, "weight_decay": decay}
        for (rate, decay), names in groups.items()
    ]


def follows_b(name: str, ndim: int) -> bool:
    """Whether LoRA+ raises the rate: of B, and of vectors of an adapter such as DoRA's magnitudes, as PEFT does."""
    return FACTOR_B.search(name) is not None or (".lora_" in name and ndim == 1 and FACTOR_A.search(name) is None)


def below_top(name: str, top: int) -> int:
    """Layers between a parameter and the highest trained layer; what stands above all layers counts as that one."""
    layer = layer_of(name)
    return top - layer if layer is not None else 0


def layer_of(name: str) -> int | None:
    """The layer of a parameter, -1 for an embedding; None for what stands above all layers."""
    match = LAYER.search(name)
    if match:
        return int(match[1])
    return -1 if EMBEDDED.search(name) else None


def is_hidden(name: str, shape: Iterable[int]) -> bool:
    """A matrix between embedding and head."""
    return len(tuple(shape)) == 2 and LAYER.search(name) is not None


def split(groups: list[Group], wanted: Callable[[str, tuple[int, ...]], bool]) -> tuple[list[Group], list[Group]]:
    """The parameters that are wanted, by name and shape, and the others, each in groups like those given."""

    def part(is_wanted: bool) -> list[Group]:
        chosen = []
        for group in groups:
            pairs = [
                (name, member)
                for name, member in zip(group["names"], group["params"], strict=True)
                if wanted(name, tuple(member.shape)) == is_wanted
            ]
            if pairs:
                names, members = zip(*pairs, strict=True)
                chosen.append({**group, "names": list(names), "params": list(members)})
        return chosen

    return part(True), part(False)


def single(groups: list[Group]) -> list[Group]:
    """Every parameter in a group of its own."""
    return [
        {**group, "names": [name], "params": [member]}
        for group in groups
        for name, member in zip(group["names"], group["params"], strict=True)
    ]


def counted(state: State) -> int:
    """One step more; returns how many there were with it."""
    if "step" not in state:
        state["step"] = torch.zeros(())
    state["step"] += 1
    return int(state["step"].item())


def numbers(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
