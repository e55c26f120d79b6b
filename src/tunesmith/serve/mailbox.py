"""Pieces of answers on their way from the thread that decodes to the client that asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TypeVar

from starlette.types import Message, Receive

from tunesmith.errors import TunesmithError
from tunesmith.rollout.orders import Order, Piece
from tunesmith.serve.metrics import Metrics
from tunesmith.serve.refusals import Refusal
from tunesmith.serve.settings import Limits
from tunesmith.serve.worker import Worker

Result = TypeVar("Result")


class Mailbox:
    """The answers of one request. Whoever leaves it cancels what is not made yet, which gives back its pages."""

    def __init__(self, worker: Worker, limits: Limits, metrics: Metrics) -> None:
        self.worker, self.limits, self.metrics = worker, limits, metrics
        self.loop = asyncio.get_running_loop()
        self.box: asyncio.Queue[Piece | TunesmithError] = asyncio.Queue()
        self.orders: list[Order] = []
        self.began = time.monotonic()

    def deliver(self, piece: Piece | TunesmithError) -> None:
        """On the thread that decodes."""
        if self.box.qsize() > self.limits.pieces:
            self.cancel()
            piece = Refusal("E424", "the client reads its stream too slowly", fix="ask for less at a time", status=408)
        try:
            self.loop.call_soon_threadsafe(self.box.put_nowait, piece)
        except RuntimeError:  # the loop is closed: nobody listens
            self.cancel()

    def submit(self, orders: list[Order]) -> None:
        self.orders = orders
        self.worker.submit(orders)

    def cancel(self) -> None:
        for order in self.orders:
            order.cancelled = True

    async def pieces(self) -> AsyncIterator[Piece]:
        """As they come, to the end of all answers; raises what went wrong."""
        left = sum(order.count for order in self.orders)
        first = True
        try:
            while left:
                piece = await self.box.get()
                if isinstance(piece, TunesmithError):
                    raise piece
                if first:
                    self.metrics.first_token.add(time.monotonic() - self.began)
                    first = False
                left -= piece.reason is not None
                yield piece
            self.metrics.whole.add(time.monotonic() - self.began)
        finally:
            if left:
                self.cancel()


async def until_gone(receive: Receive) -> None:
    """Returns when the client has left."""
    message: Message = await receive()
    while message["type"] != "http.disconnect":
        message = await receive()


class Gone(Exception):
    """The client left before its answer."""


async def unless_gone(work: asyncio.Task[Result], receive: Receive) -> Result:
    """What the work gives; it is given up, and Gone raised, when the client leaves first."""
    watch = asyncio.ensure_future(until_gone(receive))
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work
        raise Gone
    finally:
        watch.cancel()
        if not work.done():
            work.cancel()
