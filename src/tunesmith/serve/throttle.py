"""Wrong tokens, counted by the address that they come from."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass

from tunesmith.serve.refusals import Refusal

FREE = 10  # wrong tokens after which each further one takes DELAY
DELAY = 1.0  # seconds
TOGETHER = 8  # requests of one address that may be in such a delay; more are not looked at
FORGOTTEN = 600.0  # seconds without a wrong token after which an address begins anew
ADDRESSES = 4096  # that are remembered; the one that was quiet for longest goes first


@dataclass(slots=True)
class Record:
    wrong: int = 0
    delayed: int = 0
    last: float = 0.0


class Throttle:
    """Guessing is slow: from one address at most TOGETHER guesses in DELAY, and nobody else waits for them."""

    def __init__(self) -> None:
        self.records: OrderedDict[str, Record] = OrderedDict()

    def check(self, address: str) -> None:
        """Refusal E429, before the token is looked at, while too many wrong ones of that address are waited for."""
        record = self.records.get(address)
        if record is not None and record.delayed >= TOGETHER:
            error = Refusal("E429", "too many wrong tokens came from your address", fix="wait, and send the right one")
            error.headers["Retry-After"] = str(round(DELAY))
            raise error

    async def note(self, address: str) -> None:
        """A wrong token; returns when the client may hear that it was."""
        record = self.record_of(address)
        record.wrong += 1
        if record.wrong <= FREE:
            return
        record.delayed += 1
        try:
            await asyncio.sleep(DELAY)
        finally:
            record.delayed -= 1

    def record_of(self, address: str) -> Record:
        now = time.monotonic()
        record = self.records.setdefault(address, Record())
        if now - record.last > FORGOTTEN:
            record.wrong = 0
        record.last = now
        self.records.move_to_end(address)
        while len(self.records) > ADDRESSES:
            self.records.popitem(last=False)
        return record
