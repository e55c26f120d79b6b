"""A program beside ours that ends with ours, however ours ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO


class Kept:
    """A program under a keeper that ends it, with all that it starts, when our end of a pipe closes.

    The pipe closes also when we are killed (SIGKILL, out of memory). What it says goes to `output`; it hears nothing.
    """

    def __init__(self, command: Sequence[str], output: IO[bytes], environment: Mapping[str, str]) -> None:
        keeper = Path(__file__).with_name("keeper.py")
        theirs, self._held = os.pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(keeper), str(theirs), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                pass_fds=(theirs,),
                start_new_session=True,
            )
        finally:
            os.close(theirs)

    @property
    def code(self) -> int | None:
        """How the program ended; None while it runs."""
        return self.process.poll()

    @property
    def runs(self) -> bool:
        return self.code is None

    def end(self, patience: float = 0.0) -> None:
        """End it with all that it started, by SIGTERM where it is given some seconds for that, else by SIGKILL."""
        if patience and self.runs:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        if self._held >= 0:
            os.close(self._held)
            self._held = -1
        self.process.wait()
