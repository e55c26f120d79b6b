"""What a server is told: where it listens, who may ask, and its limits."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from tunesmith.errors import Fix, Unsafe, Where
from tunesmith.export.opening import Dtype
from tunesmith.rollout.config import Held

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, bytes and counts beyond which a request is refused or given up."""

    batch_size: int = 32  # answers decoded together, of each model
    queue: int = 256  # orders that wait
    choices: int = 128  # answers of one request
    new_tokens: int = 1024  # of an answer that names no limit
    cache_bytes: int = 2 << 30  # keys and values of each model
    wait_seconds: float = 120.0  # that an order may wait for its beginning
    held: Held = "packed"  # what products read
    dtype: Dtype = "auto"  # of the weights
    body_bytes: int = 4 << 20
    path_bytes: int = 8 << 10
    header_bytes: int = 32 << 10
    depth: int = 64  # of JSON
    header_seconds: float = 10.0  # from the first byte of a request to the end of its headers
    body_seconds: float = 30.0
    send_seconds: float = 30.0  # that a client may leave a full socket unread
    pieces: int = 4096  # of a stream that wait for its client
    connections: int = 1024
    connections_each: int = 512  # of one address


@dataclass(frozen=True, slots=True)
class Settings:
    """Raises Unsafe E421 for an address that others reach without a token."""

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    names: tuple[str, ...] = ()  # further names under which the server may be asked
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if self.token is None and not self.is_local:
            raise Unsafe(
                "E421",
                f"{self.host} can be reached from other machines, so the server needs a token",
                where=Where("command line", field="--host"),
                fixes=[
                    Fix("read it from a file", command=f"tunesmith serve MODEL --host {self.host} --token-file FILE"),
                    "listen on this machine alone: leave --host out",
                ],
            )

    @property
    def is_local(self) -> bool:
        return is_loopback(self.host)

    def allows(self, host: str) -> bool:
        """Whether a Host header (or the host of an Origin) may name this server.

        Addresses cannot be rebound by a foreign page, names can: of these only known ones.
        """
        found = read_host(host)
        if found is None:
            return False
        name = found[0]
        if name in {one_form(each) for each in (*LOOPBACK_NAMES, self.host, *self.names)}:
            return True
        return not self.is_local and as_address(name) is not None


HOST = re.compile(r"(?:\[([0-9a-f:.]{2,45})\]|([a-z0-9._-]{1,253}))(?::([0-9]{1,5}))?")


def read_host(text: str) -> tuple[str, int | None] | None:
    """Name and port as a Host header writes them, and nothing besides; None for what is no host."""
    found = HOST.fullmatch(text.strip(" \t").lower())
    if found is None or int(found[3] or 0) > 65535 or (found[1] and as_address(found[1]) is None):
        return None
    if found[1] and ":" not in found[1]:  # brackets are for addresses of IPv6
        return None
    return one_form(found[1] or found[2]), None if found[3] is None else int(found[3])


def one_form(name: str) -> str:
    """An address written in one way."""
    address = as_address(name)
    return name.lower() if address is None else str(address)


def as_address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    address = as_address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback
