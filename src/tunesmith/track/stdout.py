"""Keeps what foreign code prints on a background thread away from stdout, which carries answers."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_lock = threading.Lock()
_silent: set[int] = set()


class _Router:
    """The real stdout, except that what silent threads write is dropped."""

    def __init__(self, real: TextIO) -> None:
        self.real = real

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() in _silent else self.real.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@contextmanager
def silence_thread() -> Iterator[None]:
    """Drop what this thread prints on stdout; other threads print as before."""
    me = threading.get_ident()
    with _lock:
        if not isinstance(sys.stdout, _Router):
            sys.stdout = _Router(sys.stdout)
        _silent.add(me)
    try:
        yield
    finally:
        with _lock:
            _silent.discard(me)
            if not _silent and isinstance(sys.stdout, _Router):
                sys.stdout = sys.stdout.real
