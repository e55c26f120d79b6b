"""Code in the docs runs.

Every `python` block of a page runs, all of them in one process. Of a `console` block the lines after `$ ` run; the
lines below a command must occur in what it prints, except lines with `...`. Both run in one empty folder per page.
A block below `<!-- no-run: reason -->` is left out; below `<!-- exit: 2 -->` it must fail with that code.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.house.source import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>no-run|exit): ?(?P<why>.*?) -->\n+)?```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.M | re.S
)


@dataclass
class Block:
    kind: str
    body: str
    exit_code: int = 0


def blocks(text: str) -> list[Block]:
    found = []
    for match in BLOCK.finditer(text):
        mark, why, kind = match["mark"], match["why"], match["kind"]
        assert mark is None or why, "a mark needs its reason or its code"
        if mark != "no-run" and kind in ("python", "console"):
            found.append(Block(kind, match["body"], int(why) if mark == "exit" else 0))
    return found


def commands(body: str) -> list[tuple[str, list[str]]]:
    """Each command with the lines shown below it."""
    found: list[tuple[str, list[str]]] = []
    for line in body.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif found and line.strip() and "..." not in line:
            found[-1][1].append(line)
    return found


def environment(home: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "TUNESMITH_HOME": str(home), "NO_COLOR": "1", "COLUMNS": "120"}


def squeezed(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run(page, tmp_path):
    found = blocks(page.read_text(encoding="utf-8"))
    for block in found:
        for command, lines in commands(block.body) if block.kind == "console" else []:
            done = subprocess.run(
                ["bash", "-c", command],
                capture_output=True,
                text=True,
                cwd=tmp_path,
                env=environment(tmp_path / "home"),
            )
            printed = squeezed(done.stdout + done.stderr)
            assert done.returncode == block.exit_code, f"{command}\n{done.stdout}{done.stderr}"
            assert [line for line in lines if squeezed(line) not in printed] == [], f"{command}\n{done.stdout}"
    program = "\n".join(block.body for block in found if block.kind == "python")
    if program:
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment(tmp_path / "home"),
        )
        assert done.returncode == 0, done.stderr


def test_the_finder_finds():
    text = "```python\nx = 1\n```\n\n<!-- no-run: needs a GPU -->\n```console\n$ a\n```\n\n"
    text += "<!-- exit: 2 -->\n```console\n$ b\nout\n...\n```\n"
    assert blocks(text) == [Block("python", "x = 1\n"), Block("console", "$ b\nout\n...\n", 2)]
    assert commands("$ b\nout\n...\n$ c\n") == [("b", ["out"]), ("c", [])]
