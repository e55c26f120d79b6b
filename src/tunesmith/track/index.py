"""The index of runs: a scan of `run.json` and `status.json`, and runs found by name."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import BadInput, Fix, UsageError, Where, nearest
from tunesmith.track.reader import last_rows, latest
from tunesmith.track.run_dir import RunDir, is_run
from tunesmith.track.status import State, Status, observed


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One line of the list; `reason` says why a run is lost or damaged. `loss` is the last one written."""

    id: str
    path: str
    state: State
    reason: str = ""
    created: float = 0.0
    step: int = 0
    total: int | None = None
    eta: float | None = None
    loss: float | None = None
    attempt: int = 1
    exit_code: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(run: RunDir) -> RunSummary:
    """One run as it stands; never raises for a damaged one."""
    created = 0.0
    try:
        created = float(run.path.stat().st_mtime)
        about = run.read_run()
        created = float(about.get("created", created))
        status = run.read_status() if run.status_file.exists() else None
        loss = latest(last_rows(run.metrics_file)).get("train/loss")
    except BadInput as error:
        return RunSummary(run.id, str(run.path), "damaged", error.diagnostic.message, created)
    except (OSError, TypeError, ValueError) as error:
        return RunSummary(run.id, str(run.path), "damaged", str(error), created)
    if status is None:
        return RunSummary(run.id, str(run.path), "planned", "", created)
    return _with_status(run, status, created, loss)


def _with_status(run: RunDir, status: Status, created: float, loss: float | None) -> RunSummary:
    state, reason = observed(status)
    eta = status.eta if state == status.state and status.active else None
    return RunSummary(
        run.id,
        str(run.path),
        state,
        reason,
        created,
        status.step,
        status.total,
        eta,
        loss,
        status.attempt,
        status.exit_code,
    )


def scan(folder: Path) -> list[RunSummary]:
    """Every run in `folder`, the newest first; an empty list when there is no such folder."""
    return sorted(map(summarise, _runs(folder)), key=lambda found: (found.created, found.id), reverse=True)


def find_run(name: str | Path, folder: Path | str = "runs") -> RunDir:
    """A run by path, id, unique beginning of an id, or `last`; UsageError E191 when none or several fit."""
    path, folder = Path(name), Path(folder)
    if is_run(path):
        return RunDir(path)
    if is_run(folder / name):
        return RunDir(folder / name)
    if str(name) == "last":
        found = scan(folder)
        if not found:
            raise UsageError("E191", f"there is no run in {folder}", where=Where(str(folder)), fixes=[_start()])
        return RunDir(Path(found[0].path))
    known = {run.id: run for run in _runs(folder)}
    fitting = sorted(each for each in known if each.startswith(str(name)))
    if len(fitting) == 1:
        return known[fitting[0]]
    if fitting:
        fix = Fix("give more of the name, or the folder")
        raise UsageError("E191", f"{len(fitting)} runs begin with {name}", evidence=_shown(fitting), fixes=[fix])
    like = nearest(str(name), known)
    fixes = [Fix(f"did you mean {like}?")] if like else []
    fixes.append(Fix("list the runs", command="tunesmith runs") if known else _start())
    raise UsageError("E191", f"there is no run {name} in {folder}", where=Where(str(folder)), fixes=fixes)


def _runs(folder: Path) -> list[RunDir]:
    try:
        return [RunDir(path) for path in sorted(folder.iterdir()) if path.is_dir() and is_run(path)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError as error:
        raise UsageError("E191", f"{folder} cannot be read", where=Where(str(folder))) from error


def _shown(names: list[str]) -> list[str]:
    return names[:5] + ([f"and {len(names) - 5} more"] if len(names) > 5 else [])


def _start() -> Fix:
    return Fix("start one", command="tunesmith quickstart")
