"""P11: durations come from the monotonic clock; the clock on the wall jumps, and is asked only what time it is."""

import ast

import pytest
from tests.house.source import SOURCE, python_files, tree

WALL = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
CLOCKS = WALL | {name.removeprefix("datetime.") for name in WALL}
ALLOWED = {  # where the time of day is written down, or compared with one that is
    "cli/runs_view.py list_view": "the age of a run, shown and never below 0",
    "data/caches.py prune": "files that nobody has used for days",
    "data/template_worker.py environment": "what strftime_now of a template says",
    "serve/app.py __init__": "a field of the interface",
    "serve/replies.py __init__": "a field of the interface",
    "track/lock.py _is_fresh": "an owner that cannot be seen; what looks dead is watched by the monotonic clock",
    "track/run_dir.py write_run": "when it was made",
    "track/status.py __init__": "the heartbeat, which other processes read",
    "track/status.py _write": "the heartbeat, which other processes read",
    "track/status.py observed": "the age of a heartbeat, shown",
    "track/status.py step": "when the last step ended, shown",
    "track/tensorboard.py _append": "a field of the format",
    "track/tracker.py completion": "when it was written",
    "track/tracker.py event": "when it was written",
    "track/tracker.py heal": "when it was written",
    "track/tracker.py metrics": "when it was written",
}


def is_wall(node: ast.AST) -> bool:
    names = {name.rpartition(".")[2] for name in WALL}
    return (
        isinstance(node, ast.Attribute) and node.attr in names and ast.unparse(node).removeprefix("datetime.") in CLOCKS
    )


def asked(node: ast.AST, inside: str = "module") -> set[str]:
    """The functions that ask for the time of day; `from time import time` counts as well."""
    found = {inside} if is_wall(node) else set()
    if isinstance(node, ast.ImportFrom) and node.module == "time":
        found |= {f"from time import {name.name}" for name in node.names if name.name in ("time", "time_ns")}
    own = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else inside
    return found.union(*(asked(child, own) for child in ast.iter_child_nodes(node)))


@pytest.mark.row("P11")
def test_the_clock_on_the_wall_measures_no_duration():
    found = {f"{path.relative_to(SOURCE)} {name}": path for path in python_files("src") for name in asked(tree(path))}
    assert sorted(found.keys() - ALLOWED.keys()) == [], "take time.monotonic(), or say here why not"
    assert sorted(ALLOWED.keys() - found.keys()) == [], "no longer there"


@pytest.mark.row("P11")
def test_every_way_of_asking_is_seen():
    lines = ("from time import time", "T = time.time()", "def f():", " def g(): return datetime.datetime.now()")
    assert asked(ast.parse("\n".join(lines))) == {"from time import time", "module", "g"}
