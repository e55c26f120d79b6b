"""How ranks that torchrun or a script started find one another: who is missing, which address or port is wrong."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from tunesmith.errors import Fix, MachineError, UsageError

PATIENCE = "TUNESMITH_JOIN_SECONDS"
JOIN_SECONDS = 15.0
LOOK_SECONDS = 0.05
ANYWHERE_PORT = "29500"  # torch's own default


@dataclass(frozen=True, slots=True)
class Place:
    """Which of how many ranks this is, and which of this machine."""

    rank: int
    world: int
    local_rank: int = 0

    def check(self) -> None:
        if self.rank >= self.world:
            message = f"RANK={self.rank} but WORLD_SIZE={self.world}: ranks are counted from 0 to {self.world - 1}"
            raise UsageError("E502", message, fixes=["start as many processes as WORLD_SIZE says"])


def patience() -> float:
    text = os.environ.get(PATIENCE, "")
    return float(text) if text.replace(".", "", 1).isdigit() else JOIN_SECONDS


def meet(place: Place) -> Store:
    """The store through which the ranks find one another, once all of them are there.

    The first rank listens on the very address that MASTER_ADDR names and on no other; under torchrun its agent does.
    Waits until no further rank has come for TUNESMITH_JOIN_SECONDS (15). Raises MachineError E501 or E503 and
    UsageError E502, which names the missing ranks.
    """
    host = os.environ.get("MASTER_ADDR", "")
    port = os.environ.get("MASTER_PORT", ANYWHERE_PORT)
    if not host or not port.isdigit():
        message = f"MASTER_ADDR={host!r}, MASTER_PORT={port!r}: the address of the first rank is not named"
        raise UsageError("E502", message, fixes=["start with: tunesmith train ... run.ranks=2"])
    address = resolved(host)
    if ip_address(address).is_loopback or os.environ.get("LOCAL_WORLD_SIZE") == str(place.world):
        stay_on_loopback()
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    listens = place.rank == 0 and not agent
    limit = timedelta(seconds=patience())
    try:
        if listens:
            own = listening(address, int(port))
            store = TCPStore(
                address,
                own.getsockname()[1],
                is_master=True,
                timeout=limit,
                wait_for_workers=False,
                master_listen_fd=own.detach(),
            )
        else:
            store = TCPStore(address, int(port), is_master=False, timeout=limit, wait_for_workers=False)
    except dist.DistError as error:
        raise unreachable(f"nothing answers at {host}:{port}", str(error).partition("\n")[0][:200]) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    own_part = PrefixStore(f"tunesmith-{attempt}", store)
    try:
        call_roll(own_part, place)
    except dist.DistError as error:
        raise unreachable(f"the first rank ended before all had come to {host}:{port}", str(error)[:200]) from error
    return own_part


def resolved(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise unreachable(f"MASTER_ADDR={host} has no address", str(error)) from error


def listening(address: str, port: int) -> socket.socket:
    """A socket bound to this address alone."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    own = socket.socket(family, socket.SOCK_STREAM)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        own.bind((address, port))
        own.listen(128)
    except OSError as error:
        own.close()
        if error.errno == errno.EADDRNOTAVAIL:
            message = f"rank 0 runs on this machine, which does not have the address MASTER_ADDR={address}"
            raise unreachable(message, str(error)) from error
        fixes = [Fix("another port: MASTER_PORT=NUMBER"), Fix("start with: tunesmith train ... run.ranks=2")]
        message = f"port {port} on {address} cannot be used: {error.strerror}"
        raise MachineError("E501", message, fixes=fixes) from error
    return own


def unreachable(message: str, reason: str) -> MachineError:
    fix = Fix("MASTER_ADDR is the address of the machine of rank 0, the same on every rank")
    return MachineError("E503", message, evidence=[reason], fixes=[fix])


def call_roll(store: Store, place: Place) -> None:
    """Wait for every rank; UsageError E502 names those that did not come, or a rank that came twice."""
    if store.add(f"here/{place.rank}", 1) > 1:
        message = f"two processes say that they are rank {place.rank} of {place.world}"
        raise UsageError("E502", message, fixes=["give every process a RANK of its own"])
    missing = [rank for rank in range(place.world) if rank != place.rank]
    heard = time.monotonic()
    while missing:
        came = [rank for rank in missing if store.check([f"here/{rank}"])]
        if came:
            missing = [rank for rank in missing if rank not in came]
            heard = time.monotonic()
        elif time.monotonic() - heard > patience():
            names = ", ".join(str(rank) for rank in missing[:8])
            message = f"rank {names} did not come: WORLD_SIZE={place.world}, {place.world - len(missing)} are here"
            fixes = [Fix("start as many processes as WORLD_SIZE says"), Fix(f"wait longer: {PATIENCE}=120")]
            raise UsageError("E502", message, fixes=fixes)
        else:
            time.sleep(LOOK_SECONDS)


def stay_on_loopback() -> None:
    """Ranks of one machine talk over the loopback interface alone."""
    loopback = "lo" if sys.platform == "linux" else "lo0"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
