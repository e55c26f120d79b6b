"""The server as a process: its socket, the time that a request may take to arrive, and an orderly end."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from tunesmith.errors import Fix, MachineError, Where
from tunesmith.serve.app import Routes, make_app
from tunesmith.serve.guard import Guard
from tunesmith.serve.house import House
from tunesmith.serve.metrics import Metrics
from tunesmith.serve.protocol import protocol
from tunesmith.serve.settings import Settings
from tunesmith.serve.vllm import VllmHouse

KEEP_ALIVE = 15  # seconds that an idle connection is kept
GRACE = 10  # seconds that requests may take to end at shutdown
TRIES = 20  # ports that are tried for a free one


class Server(uvicorn.Server):
    """Serves until it is told to stop; `house` is closed with it."""

    def __init__(self, house: House | VllmHouse, settings: Settings) -> None:
        self.house, self.settings = house, settings
        self.metrics = Metrics(house)
        is_own = isinstance(house, House)
        routes = Routes(house, self.metrics, settings.limits).all() if is_own else house.routes(self.metrics)
        app = Guard(make_app(routes), routes, settings, self.metrics)
        config = uvicorn.Config(
            app,
            http=protocol(settings.limits),
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=GRACE,
            h11_max_incomplete_event_size=settings.limits.header_bytes,
        )
        super().__init__(config)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM are how a server ends; they are not sent again once it has."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def serve_on(self, listening: socket.socket, *, on_ready: Callable[[], None] | None = None) -> None:
        """Blocks until the server has ended; SIGINT and SIGTERM end it."""
        self.house.start()

        async def both() -> None:
            serving = asyncio.ensure_future(self.serve([listening]))
            while not self.started and not serving.done():
                await asyncio.sleep(0.01)
            if on_ready is not None and self.started:
                on_ready()
            await serving

        try:
            asyncio.run(both())
        finally:
            self.house.close()


def listen(host: str, port: int) -> socket.socket:
    """A socket on that address. MachineError E422, with a port that is free, when it is taken."""
    try:
        return bound(host, port)
    except socket.gaierror as error:
        message = f"there is no address {host!r} to listen on: {error.strerror}"
        fixes = [Fix("listen on this machine alone", command="tunesmith serve MODEL --host 127.0.0.1")]
        raise MachineError("E422", message, where=Where("command line", field="--host"), fixes=fixes) from error
    except OSError as error:
        free = next((each for each in range(port + 1, port + TRIES) if is_free(host, each)), None)
        fixes = [Fix(f"port {free} is free", command=f"tunesmith serve MODEL --port {free}")] if free else []
        raise MachineError(
            "E422",
            f"cannot listen on {host}, port {port}: {error.strerror or error}",
            where=Where("command line", field="--port"),
            fixes=[*fixes, "port 0 takes any that is free"],
        ) from error


def bound(host: str, port: int) -> socket.socket:
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    made = socket.socket(family, kind)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(1024)
    except OSError:
        made.close()
        raise
    made.setblocking(False)
    return made


def is_free(host: str, port: int) -> bool:
    try:
        bound(host, port).close()
    except OSError:
        return False
    return True
