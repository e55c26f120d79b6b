"""bitsandbytes' paged AdamW on a GPU: states in memory that the driver moves between the GPU and the host."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tunesmith.errors import CheckpointError, Fix, Where
from tunesmith.train.optimizers.base import AdamConfig, Group, State

KINDS = {"state1": "exp_avg", "state2": "exp_avg_sq"}  # of states in fp32, under torch's names
TABLES = ("qmap1", "qmap2")  # constants of the code in 8 bits


def is_unified(settings: AdamConfig, groups: list[Group]) -> bool:
    """Whether these parameters are on a GPU and their states are to be paged."""
    return settings.paging != "off" and any(member.is_cuda for group in groups for member in group["params"])


class UnifiedAdamW(torch.optim.Optimizer):
    """PagedAdamW or PagedAdamW8bit, whose states go into checkpoints and come back; updates are bitsandbytes' own."""

    def __init__(self, groups: list[Group], settings: AdamConfig, bits: int) -> None:
        import bitsandbytes

        super().__init__(groups, {})
        kind = bitsandbytes.optim.PagedAdamW8bit if bits == 8 else bitsandbytes.optim.PagedAdamW
        self.inner = kind(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps)
        self.param_groups = self.inner.param_groups

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.inner.step()

    def kept(self, parameter: nn.Parameter) -> State:
        """The states of a parameter, under torch's names where they are torch's; empty before its first step."""
        found = self.inner.state.get(parameter)
        if not found:
            return {}
        wide = found["state1"].dtype == torch.float32
        named = {
            KINDS[kind] if wide and kind in KINDS else kind: value
            for kind, value in found.items()
            if isinstance(value, Tensor) and kind not in TABLES
        }
        return {"step": torch.tensor(float(found["step"])), **named}

    @torch.no_grad()
    def adopt(self, parameter: nn.Parameter, state: State) -> None:
        """Take over such states; CheckpointError E307 where they are of another kind, as our own 8 bits are."""
        self.inner.state.pop(parameter, None)
        for number, group in enumerate(self.inner.param_groups):
            for place, member in enumerate(group["params"]):
                if member is parameter:
                    self.inner.init_state(group, parameter, number, place)
        own = self.kept(parameter)
        if own.keys() != state.keys():
            raise other_kind(sorted(state))
        self.inner.state[parameter]["step"] = int(state["step"].item())
        for kind, value in own.items():
            if kind != "step":
                value.copy_(state[kind].view(value.shape))


def other_kind(found: list[str]) -> CheckpointError:
    key = "train.optimizer.paging"
    return CheckpointError(
        "E307",
        "the checkpoint's states of the optimiser are in another form than bitsandbytes' paged one",
        where=Where(field=key),
        evidence=(", ".join(found),),
        fixes=[Fix(f"{key}=off", {key: "off"}, effect="go on as the run began")],
    )
