"""What an online run writes about itself: its identity, a row per round, its final weights, its sums."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.sources import fingerprint_source
from tunesmith.distributed.mesh import Mesh
from tunesmith.export.identity import weights_identity
from tunesmith.iterate.rounds import Round, settings_of, start_source
from tunesmith.models.content import content_hash
from tunesmith.models.save import swap
from tunesmith.recipe import Recipe, to_yaml, with_absolute_paths
from tunesmith.recipe.gone import AT_DEFAULT
from tunesmith.run import RunResult
from tunesmith.running.identity import at_default, defaults_of, is_compared
from tunesmith.track.files import disk_error
from tunesmith.track.hardware import describe_machine
from tunesmith.track.reader import read_lines, read_metrics
from tunesmith.track.run_dir import RunDir
from tunesmith.track.tracker import Tracking
from tunesmith.train.position import Known, check_same, flatten, without

PROMPTS_HASH = "prompts hash"
WEIGHTS = ("adapter", "model")  # folders of a finished run
FREE = ("online.rounds", "online.sampling.batch_size")  # more rounds may be asked for later


@dataclass(frozen=True, slots=True)
class OnlineResult(RunResult):
    """Sums over the rounds, of training alone; `rounds` tells of each. `stopped_early`: a round brought no record."""

    rounds: tuple[dict[str, Any], ...]
    stopped_early: bool


def summarise(run: RunDir, done: Sequence[dict[str, Any]], wanted: int) -> OnlineResult:
    trained = [found["trained"] for found in done]
    tokens, seconds = sum(each["tokens"] for each in trained), sum(each["seconds"] for each in trained)
    return OnlineResult(
        run=str(run.path),
        steps=sum(each["steps"] for each in trained),
        tokens=tokens,
        scored_tokens=sum(each["scored_tokens"] for each in trained),
        saved_tokens=sum(each.get("saved_tokens", 0) for each in trained),
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        peak_memory_bytes=max(each["peak_memory_bytes"] for each in trained),
        first_loss=trained[0]["first_loss"],
        last_loss=trained[-1]["last_loss"],
        rounds=tuple(done),
        stopped_early=len(done) < wanted,
    )


def describe(run: RunDir, recipe: Recipe, mesh: Mesh, plan: dict[str, Any] | None, accept_data_change: bool) -> None:
    """Write recipe, plan and `run.json`, or compare with those of the attempt before (CheckpointError E116)."""
    source = start_source(recipe)
    found = identity(recipe)
    if run.run_file.exists():
        began = run.read_run().get("identity", {})
        ignore = (PROMPTS_HASH,) if accept_data_change else ()
        known = Known(defaults_of(recipe), is_same_run)
        check_same(without(began, ignore), without(found, ignore), known)  # what is gone, the loader has told
        return
    run.write_config(to_yaml(with_absolute_paths(recipe)))
    if plan is not None:
        run.write_plan(plan)
    run.write_run(
        {
            "argv": sys.argv,
            "seed": recipe.train.seed,
            "method": recipe.model.adapter.method,
            "objective": "online " + " + ".join(objective.title for objective in recipe.objectives),
            "model": {"path": recipe.model.path, "folder": str(source.base), "hash": content_hash(source.base)},
            "rounds": settings_of(recipe).rounds,
            "ranks": mesh.world,
            "identity": found,
            AT_DEFAULT: at_default(recipe),
            **describe_machine(),
        }
    )


def identity(recipe: Recipe) -> dict[str, Any]:
    """What a resume must find unchanged; files by their content."""
    flat = {key: value for key, value in flatten(recipe.model_dump(mode="json")).items() if is_same_run(key)}
    prompts = [fingerprint_source(source) for source in recipe.data.train]
    weights = {f"start {name}": value for name, value in weights_identity(start_source(recipe)).items()}
    return {**flat, **weights, PROMPTS_HASH: prompts}


def is_same_run(key: str) -> bool:
    return is_compared(key) and not key.startswith(FREE)


def told_rounds(run: RunDir) -> set[int]:
    """Rounds, counted from 1, that have their row of metrics."""
    return {row["step"] for row in read_metrics(run.metrics_file)}


def tell_round(tracker: Tracking, found: dict[str, Any], tokens: int) -> None:
    """One row: what the answers were like, what came of them, how the training went; `tokens` of all rounds so far."""
    sampled, labelled, trained = found["sampled"], found["labelled"], found["trained"]
    values = {
        "online/mean_mark": labelled["mean_mark"],
        "online/best_mark": labelled["best_mark"],
        "online/records": labelled["records"],
        "online/ties": labelled["ties"],
        "online/longer": labelled["longer"],
        "online/finished": sampled["finished"],
        "online/distinct": sampled["distinct"],
        "length/mean": sampled["mean_length"],
        "train/loss": trained["last_loss"],
        "eval/loss": trained["eval_loss"],
    }
    known = {name: float(value) for name, value in values.items() if value is not None}
    tracker.metrics(found["round"] + 1, tokens, known)


def tell_evaluation(tracker: Tracking, last: Round) -> None:
    """What the last round measured of its model holds for the run."""
    found = [row["scores"] for row in read_lines(last.run.events_file) if isinstance(row.get("scores"), dict)]
    if found:
        tracker.event("evaluation", {"scores": found[-1]})


def keep_weights(last: Round) -> None:
    """The last round's weights become the run's, without a copy where the disk allows links."""
    for name in WEIGHTS:
        source, target = last.run.path / name, last.parent.path / name
        if not source.is_dir():
            continue
        stage = last.parent.path / f".tmp-{name}-{uuid.uuid4().hex[:8]}"
        try:
            shutil.copytree(source, stage, copy_function=link_or_copy)
            swap(stage, target)
        except OSError as error:
            raise disk_error(error, target) from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
