"""W&B, MLflow and trackio as sinks; each is imported only on its own thread."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tunesmith.errors import Fix, MachineError, Where
from tunesmith.track.reader import Row, number
from tunesmith.track.sinks import About, Adapter, Sink

PROJECT = "tunesmith"
_NOT_METRICS = frozenset({"step", "wall", "attempt"})
_MLFLOW_BATCH = 100
_MLFLOW_TEXT = 500


class Wandb:
    """Weights & Biases; without a key in the environment or `~/.netrc` it writes offline into the run's directory."""

    def __init__(self) -> None:
        self._run: Any = None

    def start(self, about: About) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=about.id,
            name=about.id,
            resume="allow",
            config=about.config,
            dir=str(about.folder),
            mode=None if _knows_wandb() else "offline",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("*", step_metric="step")  # its own counter refuses to go back after a resume

    def log(self, row: Row) -> None:
        self._run.log({"step": row["step"], **metrics(row)})

    def completion(self, row: Row) -> None:
        columns = ["step", "prompt", "completion"]
        table = self._wandb.Table(columns=columns, data=[[row[name] for name in columns]])
        self._run.log({"step": row["step"], "completions": table})

    def finish(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)


class Mlflow:
    """MLflow through its client, without its global active run; the tracking server is the one of its environment."""

    def __init__(self) -> None:
        self._client: Any = None
        self._id = ""
        self._texts = 0

    def start(self, about: About) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        group = experiment.experiment_id if experiment else self._client.create_experiment(name)
        earlier = self._client.search_runs([group], f"tags.`tunesmith.run` = '{about.id}'", max_results=1)
        if earlier:
            self._id = earlier[0].info.run_id
            return
        self._id = self._client.create_run(group, run_name=about.id, tags={"tunesmith.run": about.id}).info.run_id
        params = [Param(key, text[:_MLFLOW_TEXT]) for key, text in flat(about.config).items()]
        for start in range(0, len(params), _MLFLOW_BATCH):
            self._client.log_batch(self._id, params=params[start : start + _MLFLOW_BATCH])

    def log(self, row: Row) -> None:
        milliseconds = int(row["wall"] * 1000)
        found = [self._metric(name, value, milliseconds, row["step"]) for name, value in metrics(row).items()]
        self._client.log_batch(self._id, metrics=found)

    def completion(self, row: Row) -> None:
        self._texts += 1
        name = f"completions/step-{row['step']}-{self._texts}.txt"
        self._client.log_text(self._id, f"{row['prompt']}\n\n{row['completion']}\n", name)

    def finish(self, exit_code: int) -> None:
        self._client.set_terminated(self._id, "FINISHED" if exit_code == 0 else "FAILED")


class Trackio:
    """Trackio: a local dashboard; it prints, which the sink's thread keeps from stdout."""

    def __init__(self) -> None:
        self._trackio: Any = None

    def start(self, about: About) -> None:
        import trackio

        self._trackio = trackio
        name = os.environ.get("TRACKIO_PROJECT", PROJECT)
        trackio.init(project=name, name=about.id, config=flat(about.config), resume="allow", embed=False)

    def log(self, row: Row) -> None:
        self._trackio.log(metrics(row), step=row["step"])

    def completion(self, row: Row) -> None:
        self._trackio.log({"completion": row["completion"], "prompt": row["prompt"]}, step=row["step"])

    def finish(self, exit_code: int) -> None:
        self._trackio.finish()


ADAPTERS: Mapping[str, Callable[[], Adapter]] = {"wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio}


def make_sinks(names: tuple[str, ...]) -> list[Sink]:
    """Sinks for the foreign names in `run.report_to`; MachineError E172 for the first whose package is missing."""
    wanted = [name for name in names if name in ADAPTERS]
    for name in wanted:
        if find_spec(name) is None:
            raise MachineError(
                "E172",
                f"run.report_to names {name}, which is not installed",
                where=Where(field="run.report_to"),
                fixes=[
                    Fix(f"install {name}", command=f"pip install {name}"),
                    Fix("leave it out: run.report_to=[tensorboard]", effect="the run's own files are always written"),
                ],
            )
    return [Sink(name, ADAPTERS[name]()) for name in wanted]


def metrics(row: Row) -> dict[str, float]:
    """The finite numbers of a row: these tools refuse or garble NaN."""
    values = {name: number(value) for name, value in row.items() if name not in _NOT_METRICS}
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested mapping as dotted keys and texts."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        else:
            found[name] = str(value)
    return found


def _knows_wandb() -> bool:
    """Whether its own login would succeed or was chosen; otherwise it would ask on the terminal."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE"):
        return True
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return "wandb" in file.read_text("utf-8", errors="replace")
    except OSError:
        return False
