"""Tensors that wait in host memory between the forward and the backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tunesmith.errors import Fix, MachineError, Where


@dataclass(frozen=True, slots=True)
class Arriving:
    """A tensor on its way back; it may be read once `wait` has returned."""

    states: Tensor
    wait: Callable[[], None]


class Carrier(Protocol):
    """Moves tensors to host memory and back, beside the computation."""

    def send(self, states: Tensor) -> Tensor: ...

    def fetch(self, away: Tensor) -> Arriving: ...


class HostStore:
    """Hands out a parcel for every tensor put away; opening one calls for the parcel put away before it.

    Backward passes open parcels in the reverse order, so each is on its way while the layer above it is computed.
    A parcel belongs to whoever put it away: a graph that is dropped takes its parcels along.
    """

    def __init__(self, carrier: Carrier) -> None:
        self.carrier = carrier
        self.last: weakref.ref[Parcel] | None = None

    def put(self, states: Tensor) -> Parcel:
        """Begin to copy; the caller lets go of `states`, and its memory is free once the copy is done."""
        parcel = Parcel(self, self.carrier.send(states), self.last)
        self.last = weakref.ref(parcel)
        return parcel


class Parcel:
    """One tensor that was put away."""

    def __init__(self, store: HostStore, away: Tensor, below: weakref.ref[Parcel] | None) -> None:
        self.store = store
        self.away: Tensor | None = away
        self.arriving: Arriving | None = None
        self.below = below

    def call(self) -> None:
        """Begin to bring it back, unless that has begun or it was opened."""
        if self.away is not None and self.arriving is None:
            self.arriving = self.store.carrier.fetch(self.away)

    def open(self) -> Tensor:
        """The tensor as it was put away, once."""
        self.call()
        assert self.arriving is not None, "a parcel is opened once"
        below = None if self.below is None else self.below()
        if below is not None:
            below.call()
        states, wait = self.arriving.states, self.arriving.wait
        wait()
        self.away = self.arriving = None
        return states


class CudaCarrier:
    """Copies between a CUDA device and pinned host memory, on a stream of its own.

    torch keeps pinned blocks for reuse. `record_stream` keeps the memory of either side from being reused too early.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    def send(self, states: Tensor) -> Tensor:
        away = torch.empty(states.shape, dtype=states.dtype, pin_memory=True)
        self.stream.wait_stream(torch.cuda.current_stream(states.device))
        with torch.cuda.stream(self.stream):
            away.copy_(states, non_blocking=True)
        states.record_stream(self.stream)
        return away

    def fetch(self, away: Tensor) -> Arriving:
        with torch.cuda.stream(self.stream):
            states = away.to(self.stream.device, non_blocking=True)
        done = self.stream.record_event()

        def wait() -> None:
            current = torch.cuda.current_stream(states.device)
            current.wait_event(done)
            states.record_stream(current)

        return Arriving(states, wait)


def carrier_for(device: torch.device) -> Carrier:
    """Raises MachineError E188 where tensors are in host memory already."""
    if device.type != "cuda":
        raise MachineError(
            "E188",
            f"activations cannot be offloaded: on a {device.type.upper()} they are in host memory already",
            where=Where(field="train.activation_checkpointing"),
            fixes=[Fix("train.activation_checkpointing=full", {"train.activation_checkpointing": "full"})],
        )
    return CudaCarrier(device)


def checkpoint_away(run: Callable[[Tensor], Tensor], states: Tensor, store: HostStore) -> Tensor:
    """`run` computed again in the backward pass, its input put away meanwhile."""

    def pack(saved: Tensor) -> Parcel | Tensor:
        same = saved.data_ptr() == states.data_ptr() and saved.shape == states.shape
        return store.put(saved) if same else saved

    def unpack(saved: Parcel | Tensor) -> Tensor:
        return saved.open() if isinstance(saved, Parcel) else saved

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return checkpoint(run, states, use_reentrant=False)  # pyright: ignore[reportReturnType]
