"""How the value of a trained parameter is held between updates: by itself, by an fp32 master, or in its own 16 bits."""

from __future__ import annotations

import zlib
from typing import Literal

import torch
from torch import Tensor, nn

Rounding = Literal["masters", "stochastic", "kahan"]


class Held:
    """A parameter in fp32, which is updated as it is; `master` is what an optimiser sees.

    Between `widen` and `narrow` the master holds the value in fp32; `kept` is the tensor that holds it else.
    """

    def __init__(self, parameter: nn.Parameter, master: nn.Parameter | None = None) -> None:
        self.parameter = parameter
        self.master = parameter if master is None else master

    @property
    def kept(self) -> Tensor:
        return self.master.detach()

    @property
    def has_copy(self) -> bool:
        """Whether `kept` is not the parameter itself."""
        return self.master is not self.parameter

    def widen(self) -> None:
        """Have the value in the master."""

    def narrow(self) -> None:
        """Have the master's value in the parameter."""

    def show(self, value: Tensor) -> None:
        """Have another value in the parameter until `take` brings back what was trained."""
        self.take(value)

    def take(self, value: Tensor) -> None:
        self.kept.copy_(value)

    def begin(self, step: int) -> None:
        """Told how many steps came before, where a parameter begins to be trained in the middle of a run."""

    def state(self) -> dict[str, Tensor]:
        """What a resume needs besides `kept`."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take what belongs here out of a parameter's state; the parameter holds its restored value already."""
        self.take(state.pop("master", self.parameter.detach()))


class Mastered(Held):
    """A parameter below fp32 with a copy in fp32."""

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__(parameter, nn.Parameter(parameter.detach().float()))

    def narrow(self) -> None:
        self.parameter.copy_(self.master)

    def take(self, value: Tensor) -> None:
        super().take(value)
        self.narrow()


class Short(Held):
    """A parameter in bf16 whose master is there for an update alone; else it has a shape and no memory."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.idle = torch.zeros((), device=parameter.device).expand(parameter.shape)
        super().__init__(parameter, nn.Parameter(self.idle))

    @property
    def kept(self) -> Tensor:
        return self.parameter.detach()

    @property
    def has_copy(self) -> bool:
        return False

    def widen(self) -> None:
        self.master.data = self.parameter.detach().float()

    def narrow(self) -> None:
        self.round()
        self.master.data = self.idle

    def round(self) -> None:
        raise NotImplementedError

    def show(self, value: Tensor) -> None:
        self.take(value)
        self.master.data = self.idle


class Stochastic(Short):
    """Rounded up or down by chance, so that the mean is the value in fp32 (arXiv:2010.06192 section 5).

    The chance follows from the seed, the parameter's name and the number of the update.
    """

    def __init__(self, parameter: nn.Parameter, name: str, seed: int) -> None:
        super().__init__(parameter)
        self.name, self.seed = name, seed
        self.rounds = torch.zeros((), dtype=torch.int64)

    def round(self) -> None:
        self.rounds += 1
        generator = torch.Generator(self.parameter.device)
        generator.manual_seed(zlib.crc32(f"{self.seed} {self.name} {self.rounds.item()}".encode()))
        self.parameter.copy_(rounded_by_chance(self.master.detach(), generator))

    def begin(self, step: int) -> None:
        self.rounds.fill_(step)

    def state(self) -> dict[str, Tensor]:
        return {"rounds": self.rounds}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.rounds.copy_(state.pop("rounds", self.rounds))
        super().restore(state)


class Kahan(Short):
    """With a second number in bf16 that holds what rounding left (arXiv:2010.06192 section 5): 16 bits together."""

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__(parameter)
        self.compensation = torch.zeros_like(parameter.detach())

    def widen(self) -> None:
        super().widen()
        self.master.data.add_(self.compensation)

    def round(self) -> None:
        self.parameter.copy_(self.master)
        self.compensation.copy_(self.master.detach() - self.parameter)

    def state(self) -> dict[str, Tensor]:
        return {"compensation": self.compensation}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.compensation.copy_(state.pop("compensation", torch.zeros_like(self.compensation)))
        super().restore(state)


def held_of(name: str, parameter: nn.Parameter, rounding: Rounding, seed: int) -> Held:
    """The way for this parameter: one in fp32 needs none, one in fp16 always has a master."""
    if parameter.dtype == torch.float32:
        return Held(parameter)
    if rounding == "masters" or parameter.dtype != torch.bfloat16:
        return Mastered(parameter)
    return Kahan(parameter) if rounding == "kahan" else Stochastic(parameter, name, seed)


def rounded_by_chance(values: Tensor, generator: torch.Generator) -> Tensor:
    """To a bf16 number beside each value in fp32, the nearer it is the likelier; what bf16 can hold, NaN and Inf stay.

    The bits that bf16 drops become a carry with the chance of what they are worth.
    """
    count = values.numel()
    drawn = torch.empty(-(-count // 4), dtype=torch.int64, device=values.device)
    drawn.random_(-(2**63), None, generator=generator)
    chance = drawn.view(torch.int16)[:count].view(values.shape).int().bitwise_and_(0xFFFF)
    carried = values.contiguous().view(torch.int32).add(chance).bitwise_and_(-0x10000).view(torch.float32)
    return torch.where(values.isfinite(), carried, values).bfloat16()
