"""Connections: how many there may be, how long the head of a request may take, and what is said of one that is none."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from tunesmith.serve.refusals import Refusal, body_of, status_of
from tunesmith.serve.settings import Limits

LINGER = 1.0  # seconds that a refused client may take to hang up


class Limited(H11Protocol):
    """uvicorn's, within limits, and with refusals in the shape of all others."""

    limits: Limits
    addresses: Counter[str]  # connections of each
    deadline: asyncio.TimerHandle | None = None
    address: str | None = None  # under which this connection is counted
    refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        if len(self.connections) > self.limits.connections or self.addresses[address] >= self.limits.connections_each:
            self.refuse(too_many())
            return
        self.address = address
        self.addresses[address] += 1
        self.start_clock()

    def data_received(self, data: bytes) -> None:
        if self.refused:  # what it still sends is not read: hanging up on it could take the answer along
            return
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self.start_clock()
        else:
            self.stop_clock()

    def on_response_complete(self) -> None:
        self.stop_clock()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_clock()
        if self.address is not None:
            self.addresses[self.address] -= 1
            if not self.addresses[self.address]:
                del self.addresses[self.address]
            self.address = None
        super().connection_lost(exc)

    def start_clock(self) -> None:
        if self.deadline is None:
            self.deadline = self.loop.call_later(self.limits.header_seconds, self.give_up)

    def stop_clock(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def give_up(self) -> None:
        self.deadline = None
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Called while the error that h11 raised is being handled."""
        error, line_ended = sys.exc_info()[1], b"\n" in self.conn.trailing_data[0]
        large = isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431
        self.refuse(too_large(line_ended) if large else malformed(error))

    def refuse(self, error: Refusal) -> None:
        """Answer, where nothing has been answered yet, and hang up."""
        self.stop_clock()
        self.refused = True
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            status, body = status_of(error), json.dumps(body_of(error)).encode()
            told = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
            headers = [(key.encode(), value.encode()) for key, value in {**told, **error.headers}.items()]
            reason = HTTPStatus(status).phrase.encode()
            for event in (
                h11.Response(status_code=status, headers=headers, reason=reason),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.close)


def protocol(bounds: Limits) -> type[asyncio.Protocol]:
    """Connections of one server, which are counted together."""

    class Bounded(Limited):
        limits, addresses = bounds, Counter[str]()

    return Bounded


def too_many() -> Refusal:
    error = Refusal("E415", "there are too many connections", fix="close some, or ask again later", status=503)
    error.headers["Retry-After"] = "1"
    return error


def too_large(line_ended: bool) -> Refusal:
    if line_ended:
        return Refusal("E413", "the headers are too large", fix="send fewer", status=431)
    return Refusal("E413", "the address is too long", fix="send values in the body", status=414)


def malformed(error: BaseException | None) -> Refusal:
    return Refusal("E410", f"this is no HTTP request: {error}"[:200], fix="speak HTTP/1.1", status=400)
