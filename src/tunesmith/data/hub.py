"""Data sets of the hub, streamed by the `datasets` package when it is installed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tunesmith.data.tally import Tally
from tunesmith.errors import DataError, Fix, MachineError, Where
from tunesmith.types import Record

PREFIX = "hub:"
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
SPLIT = re.compile(r"[\w.-]{1,96}", re.ASCII)


def hub_name(path: str) -> tuple[str, str]:
    """Name and split of `hub:owner/name[:split]`; the split is `train` by default."""
    name, _, split = path.removeprefix(PREFIX).partition(":")
    if not NAME.fullmatch(name) or ".." in name or (split and not SPLIT.fullmatch(split)):
        fixes = ["write hub:owner/name or hub:owner/name:split"]
        raise DataError("E052", f"{name!r} is not the name of a hub data set", where=Where(path), fixes=fixes)
    return name, split or "train"


def hub_revision(path: str) -> str:
    """The commit that the hub serves now."""
    from huggingface_hub import HfApi

    name, _ = hub_name(path)
    try:
        return HfApi().dataset_info(name).sha or ""
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_hub(path: str, tally: Tally) -> Iterator[Record]:
    """The rows of a hub data set, at the commit of now, as records; `line` counts rows from 1. No code in it is run."""
    name, split = hub_name(path)
    datasets = _datasets(path)
    tally.start_file()
    commit = hub_revision(path)
    try:
        for row, value in enumerate(datasets.load_dataset(name, split=split, streaming=True, revision=commit), 1):
            tally.records += 1
            yield Record(dict(value), path, row)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _unreadable(path, error) from error
    tally.end_file(path)


def _datasets(path: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        fix = Fix("install it", command="pip install datasets")
        raise MachineError("E172", "hub data sets need the package datasets", where=Where(path), fixes=[fix]) from error
    return datasets


def _unreadable(path: str, error: Exception) -> DataError:
    reason = str(error).strip().split("\n")[0][:200]
    fixes = ["check the name and the split", "without a network: download the files and give their folder"]
    return DataError("E052", f"the hub data set cannot be read: {reason}", where=Where(path), fixes=fixes)
