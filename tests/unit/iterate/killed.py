"""Attempts of one online run, each killed at a failpoint but the last, in forks of a process that has trained nothing.

python -m tests.unit.iterate.killed RUN FAULT,FAULT,... KEY=VALUE ...
"""

import os
import sys
import traceback
from pathlib import Path

from tunesmith import faults
from tunesmith.distributed.mesh import Mesh
from tunesmith.iterate.loop import iterate
from tunesmith.recipe import load_recipe
from tunesmith.track.progress import NoProgress
from tunesmith.track.run_dir import RunDir


def attempt(run: Path, settings: list[str], fault: str) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        faults.arm(fault)
        iterate(load_recipe("online_dpo", settings, {}).recipe, RunDir(run), Mesh(), NoProgress())
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> None:
    run = Path(sys.argv[1])
    run.mkdir(parents=True)
    for fault in (*sys.argv[2].split(","), ""):
        code = attempt(run, sys.argv[3:], f"{fault}:kill" if fault else "")
        assert code == (-9 if fault else 0), f"{fault}: {code}"


if __name__ == "__main__":
    main()
