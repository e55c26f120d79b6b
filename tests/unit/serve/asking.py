"""Requests to the byte, which no client would send, and what the process opens and connects to meanwhile."""

import http.client
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

Header = tuple[str, str | None]


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str | None:
        try:
            return json.loads(self.body)["error"]["code"]
        except (ValueError, KeyError, TypeError):
            return None


def ask(server, method: str, path: str, headers: Sequence[Header] = (), body: bytes = b"") -> Answer:
    """With these headers alone; Host is the server's own unless one is among them, and a header of None is left out."""
    made = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        made.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        own = [] if any(name == "Host" for name, _ in headers) else [("Host", f"127.0.0.1:{server.port}")]
        for name, value in (*own, *headers, ("Content-Length", str(len(body)))):
            if value is not None:
                made.putheader(name, value)
        made.endheaders(body)
        found = made.getresponse()
        return Answer(found.status, {name.lower(): value for name, value in found.getheaders()}, found.read())
    finally:
        made.close()


def post(server, path: str, content: object, headers: Sequence[Header] = ()) -> Answer:
    return ask(server, "POST", path, [("Content-Type", "application/json"), *headers], json.dumps(content).encode())


@dataclass
class Seen:
    """What this process opened and connected to."""

    files: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)

    def note(self, event: str, given: tuple) -> None:
        if event == "open":
            self.files.append(str(given[0]))
        elif event == "socket.getaddrinfo":
            self.hosts.append(str(given[0]))
        elif event == "socket.connect" and isinstance(given[1], tuple):
            self.hosts.append(str(given[1][0]))
            self.ports.append(given[1][1])

    def beyond(self, port: int) -> list[str]:
        """Other hosts and ports than the server's own."""
        return [
            *(host for host in self.hosts if host not in ("127.0.0.1", "localhost")),
            *(str(each) for each in self.ports if each != port),
        ]

    def opened(self, names: Iterable[str]) -> list[str]:
        return [file for file in self.files if any(name in file for name in names)]


HOOKED: list[Seen] = []


@contextmanager
def watching() -> Iterator[Seen]:
    """An audit hook, which no code of the process gets around; it stays, and is deaf afterwards."""
    if not hasattr(watching, "hook"):
        watching.hook = lambda event, given: [each.note(event, given) for each in HOOKED]  # pyright: ignore[reportFunctionMemberAccess]
        sys.addaudithook(watching.hook)  # pyright: ignore[reportFunctionMemberAccess]
    seen = Seen()
    HOOKED.append(seen)
    try:
        yield seen
    finally:
        HOOKED.remove(seen)


def processor_seconds(work, tries: int = 3) -> float:
    """The least of several tries, of all threads of the process."""
    took = []
    for _ in range(tries):
        began = time.process_time()
        work()
        took.append(time.process_time() - began)
    return min(took)
