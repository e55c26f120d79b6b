"""What a server is told: where it listens, who may ask, and its limits."""

from __future__ import annotations

import ipaddress
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
        name = host_name(host)
        if name in (*LOOPBACK_NAMES, self.host.lower(), *(each.lower() for each in self.names)):
            return True
        return not self.is_local and as_address(name) is not None


def host_name(host: str) -> str:
    """Without the port."""
    text = host.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def as_address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    address = as_address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback
