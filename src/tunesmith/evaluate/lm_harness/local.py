"""Named tasks on data of your own: files of a folder take the place of what a task would fetch from the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, UsageError, Where

BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


def check_folder(folder: Path) -> None:
    """UsageError E468 unless it is a folder."""
    if not folder.is_dir():
        fixes = ["--tasks-from FOLDER, with task files or with data such as FOLDER/arc_easy/test.jsonl"]
        raise UsageError("E468", "there is no such folder of tasks", where=Where(str(folder)), fixes=fixes)


def data_for(name: str, config: Mapping[str, Any], file: Path | None, folder: Path | None) -> dict[str, Any]:
    """What of a task's settings is replaced so that it reads local files; nothing when there are none for it.

    `FOLDER/name.jsonl` is the split that is measured, `FOLDER/name/SPLIT.jsonl` any. Data files that a task file of the
    folder names may stand beside it. DataError E468 when the split that is measured is missing.
    """
    if folder is None:
        return {}
    found = files_of(folder, name, measured(config))
    if found:
        return replaced(name, config, found, folder)
    named = (config.get("dataset_kwargs") or {}).get("data_files")
    if file is None or named is None or not file.is_relative_to(folder.resolve()):
        return {}
    return {"dataset_kwargs": {**config["dataset_kwargs"], "data_files": beside(named, file.parent)}}


def measured(config: Mapping[str, Any]) -> str:
    return config.get("test_split") or config.get("validation_split") or "test"


def files_of(folder: Path, name: str, split: str) -> dict[str, Path]:
    """Split to file; the endings say how they are read."""
    single = [path for path in sorted(folder.glob(f"{name}.*")) if path.suffix in BUILDERS and path.stem == name]
    inside = sorted((folder / name).glob("*")) if (folder / name).is_dir() else []
    return ({split: single[-1]} if single else {}) | {path.stem: path for path in inside if path.suffix in BUILDERS}


def replaced(name: str, config: Mapping[str, Any], files: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """The settings of a task that read these files; splits without a file are taken out of them."""
    wanted = measured(config)
    if wanted not in files:
        raise DataError(
            "E468",
            f"the data of {name} lack the split {wanted}, which is what the task measures",
            where=Where(str(folder / name)),
            evidence=[f"there are: {', '.join(str(path.name) for path in files.values())}"],
            fixes=[f"write it as {folder / name / wanted}.jsonl"],
        )
    kinds = {BUILDERS[path.suffix] for path in files.values()}
    if len(kinds) > 1:
        told = ", ".join(path.name for path in files.values())
        message = f"the data of {name} are of several kinds, and a task reads one"
        fixes = ["write all splits as .jsonl"]
        raise DataError("E468", message, where=Where(str(folder / name)), evidence=[told], fixes=fixes)
    used = {wanted, *(split for split in files if split in [config.get(key) for key in SPLITS])}
    gone = {key: None for key in SPLITS if config.get(key) is not None and config[key] not in used}
    given = {split: str(files[split].resolve()) for split in sorted(used)}
    return {
        "dataset_path": kinds.pop(),
        "dataset_name": None,
        "dataset_kwargs": {"data_files": given},
        "custom_dataset": None,
        **gone,
    }


def beside(named: Any, folder: Path) -> Any:
    """Names of data files, those made whole that stand beside the task file."""
    if isinstance(named, Mapping):
        return {split: beside(one, folder) for split, one in named.items()}
    if isinstance(named, list):
        return [beside(one, folder) for one in named]
    return str(folder / named) if isinstance(named, str) and (folder / named).is_file() else named
