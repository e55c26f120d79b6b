"""A real server on a free port, in a thread, for as long as a test needs it."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai

from tunesmith.serve.house import House
from tunesmith.serve.server import Server, listen
from tunesmith.serve.settings import Limits, Settings

HELLO = [{"role": "user", "content": "Hello"}]


@dataclass
class Running:
    house: House
    port: int
    token: str | None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=self.token or "none", max_retries=0, timeout=60)

    @property
    def pages(self) -> int:
        return sum(each.pages for each in self.house.worker.schedulers)

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.address}/metrics").text
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"tunesmith_{name} "))


@contextmanager
def serving(named: Mapping[str, Path | str], settings: Settings | None = None, port: int = 0) -> Iterator[Running]:
    settings = settings or Settings()
    house = House({name: str(model) for name, model in named.items()}, settings.limits)
    server, listening = Server(house, settings), listen("127.0.0.1", port)
    thread = threading.Thread(target=server.serve_on, args=(listening,))
    thread.start()
    eventually(lambda: server.started)
    try:
        yield Running(house, listening.getsockname()[1], settings.token)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
        assert sum(each.pages for each in house.worker.schedulers) == 0


def eventually(holds: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.01)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def limited(**limits: float) -> Settings:
    return Settings(limits=Limits(**limits))  # pyright: ignore[reportArgumentType]
