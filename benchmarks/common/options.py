"""Options of every benchmark."""

import argparse
import sys
from pathlib import Path

from common.report import RESULTS


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="base and computation")
    parser.add_argument("--only", nargs="*", help="sides to run: names of rows, or of programs")
    parser.add_argument("--no-proof", action="store_true", help="measure without proving equal work in fp32 first")
    parser.add_argument("--allow-load", action="store_true", help="measure although other processes are at work")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result")
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of a table")


def wanted(name: str, only: list[str] | None) -> bool:
    """Whether a row is to be run: all are, unless some are named, as `trl best` or as `trl`."""
    return not only or any(name == one or name.startswith(f"{one} ") for one in only)


def existing(data: Path | None) -> Path | None:
    """The data file, or None with a line that says so where it does not exist."""
    if data is not None and not data.exists():
        print(f"skipped {data}: it does not exist; drawn records are trained instead", file=sys.stderr)
        return None
    return data
