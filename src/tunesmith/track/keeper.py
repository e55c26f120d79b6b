"""The process that runs a program and ends all of it when ours is gone, free of Tunesmith imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import NoReturn

NO_PROGRAM = 127


class Keeper:
    """The program is a group of its own: signals that end us go to it, and whatever is left of it ends with it."""

    def __init__(self) -> None:
        self.group, self.early = 0, list[int]()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self.forward)

    def forward(self, number: int, frame: FrameType | None) -> None:
        if not self.group:
            self.early.append(number)
        else:
            self.send(number)

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.group, number)

    def run(self, command: list[str], held: int) -> int:
        """How the program ended. Nobody writes to the pipe `held`: it tells when its other end is closed."""
        program = subprocess.Popen(command, process_group=0)
        self.group = program.pid
        for number in self.early:
            self.send(number)
        threading.Thread(target=self.end_with_parent, args=(held,), daemon=True).start()
        code = program.wait()
        self.send(signal.SIGKILL)
        return code

    def end_with_parent(self, held: int) -> None:
        os.read(held, 1)
        self.send(signal.SIGKILL)


def main() -> NoReturn:
    """The first argument is the end of the pipe, the others are the program's."""
    held, command = int(sys.argv[1]), sys.argv[2:]
    try:
        code = Keeper().run(command, held)
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be run: {error}\n")
        sys.exit(NO_PROGRAM)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
