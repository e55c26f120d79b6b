"""`tunesmith train`: the plan, one question, the run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.options import AsJson, Overrides, RecipeName

if TYPE_CHECKING:
    from tunesmith.distributed.mesh import Mesh
    from tunesmith.iterate.record import OnlineResult
    from tunesmith.plan import Plan
    from tunesmith.recipe import Loaded, Recipe
    from tunesmith.run import RunResult
    from tunesmith.track.run_dir import RunDir

RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, name or last.", show_default=False)]
AcceptData = Annotated[
    bool, typer.Option("--accept-data-change", help="Resume although the data files are not the same any more.")
]
Ranks = Annotated[int | None, typer.Option(help="Processes that train together on this machine.", min=1)]
EVERYDAY = {
    "model": "model.path",
    "data": "data.train",
    "method": "model.adapter.method",
    "lr": "train.optimizer.lr",
    "epochs": "train.epochs",
    "max_length": "data.max_length",
    "seed": "train.seed",
    "out": "run.name",
    "ranks": "run.ranks",
}


@dataclass(frozen=True, slots=True)
class Start:
    """How a run is started: anew or from an earlier one, asking or not."""

    resume: str | None = None
    yes: bool = False
    force: bool = False
    accept_data_change: bool = False


def register(app: typer.Typer) -> None:
    app.command("train")(train)


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="Model: starter, folder, .gguf, hub id.")] = None,
    data: Annotated[str | None, typer.Option(help="Training data: file, folder or glob.")] = None,
    method: Annotated[str | None, typer.Option(help="lora, full or freeze.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest example in tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    out: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    resume: Annotated[
        str | None, typer.Option(help="auto: go on where run.name stopped; or a run to continue.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Start without asking.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Run although the plan says that it does not fit.")] = False,
    accept_data_change: AcceptData = False,
    ranks: Ranks = None,
    as_json: AsJson = False,
) -> None:
    """Show the plan, then train."""
    everyday = {
        "model": model,
        "data": data,
        "method": method,
        "lr": lr,
        "epochs": epochs,
        "max_length": max_length,
        "seed": seed,
        "out": out,
        "ranks": ranks,
    }
    flags = [f"{EVERYDAY[name]}={value}" for name, value in everyday.items() if value is not None]
    start(recipe, [*flags, *(overrides or [])], Start(resume, yes, force, accept_data_change), as_json)


def start(name: str, overrides: list[str], how: Start, as_json: bool) -> None:
    from tunesmith.cli.forgetting import after_training
    from tunesmith.cli.output import console, emit_json, show
    from tunesmith.cli.ranks import wants_launch
    from tunesmith.cli.runs_report import next_commands
    from tunesmith.distributed.mesh import join_world
    from tunesmith.recipe import load_recipe
    from tunesmith.running.agreement import agree_on_start
    from tunesmith.track.index import summarise
    from tunesmith.track.run_dir import RunDir

    loaded = load_recipe(name, overrides)
    if wants_launch(loaded.recipe):
        start_ranks(loaded, name, overrides, how, as_json)
        return
    mesh = join_world()
    agree_on_start(loaded.recipe, mesh)
    if mesh.is_first:
        for warning in loaded.warnings:
            show(warning)
    result = run_recipe(loaded, mesh, name, how)
    mesh.close()
    if result is None or not mesh.is_first:
        return
    run = RunDir(Path(result.run))
    report = after_training(run, loaded.recipe)
    if as_json:
        emit_json({**result.to_json(), **({} if report is None else {"forgetting": report})})
        return
    loss = f"loss {result.first_loss:.4f} -> {result.last_loss:.4f}" if result.last_loss is not None else "no update"
    console().print(f"[bold green]done[/] {result.steps} steps, {result.tokens:,} tokens, {loss}")
    if report is not None:
        from tunesmith.cli.forgetting_view import forgetting_view

        console().print("\n[bold]learned and forgotten[/]")
        for part in forgetting_view(report):
            console().print(part)
    for line in (f"tunesmith runs show {result.run}", *next_commands(summarise(run), run.read_run())):
        console().print(f"  {line}")


def start_ranks(loaded: Loaded, name: str, overrides: list[str], how: Start, as_json: bool) -> None:
    """Plan and ask once for all ranks, then start them and see them to their end."""
    from tunesmith.cli.output import fetching, show
    from tunesmith.cli.ranks import Words, check_devices, lead
    from tunesmith.iterate.planning import plan_any

    for warning in loaded.warnings:
        show(warning)
    check_devices(loaded.recipe)
    check_folder(loaded, how)
    with fetching() as progress:
        plan = plan_any(loaded.recipe, ranks=loaded.recipe.run.ranks, file=name, progress=progress)
    show_plan(loaded.recipe, plan)
    plan.check(force=how.force)
    if not (how.yes or agreed()):
        return
    flags = ["--accept-data-change"] * how.accept_data_change + ["--json"] * as_json
    run = run_to_resume(loaded, how.resume)
    lead(loaded.recipe, Words(name, overrides, flags), run, as_json=as_json)


def show_plan(recipe: Recipe, plan: Plan) -> None:
    from tunesmith.cli.output import console, show
    from tunesmith.cli.plan_view import plan_view

    console().print(plan_view(plan))
    if recipe.online is not None:
        console().print(recipe.online.note)
    for problem in plan.problems:
        show(problem)


def run_recipe(loaded: Loaded, mesh: Mesh, name: str, how: Start) -> RunResult | OnlineResult | None:
    """Plan, ask, make or open the run directory, execute; None when the answer was no."""
    from tunesmith.cli.output import fetching, show
    from tunesmith.distributed.launched import launch_folder, name_run
    from tunesmith.iterate.loop import iterate
    from tunesmith.iterate.planning import plan_any
    from tunesmith.plan import record_actual
    from tunesmith.run import execute
    from tunesmith.track.progress import make_progress

    mesh.first_then_others(lambda: mesh.is_first and check_folder(loaded, how))
    with fetching() as progress:
        plan = mesh.first_then_others(lambda: plan_any(loaded.recipe, ranks=mesh.world, file=name, progress=progress))
    if mesh.is_first and launch_folder() is None:  # our launcher has shown it
        show_plan(loaded.recipe, plan)
        plan.check(force=how.force)
    if not mesh.all_agree(not mesh.is_first or how.yes or agreed()):
        return None
    old = run_to_resume(loaded, how.resume)
    run = open_run(loaded, old, mesh)
    if mesh.is_first:
        name_run(run.path)
    with make_progress(quiet=not mesh.is_first) as display:
        accept = how.accept_data_change
        carry_out = execute if loaded.recipe.online is None else iterate
        result = carry_out(loaded.recipe, run, mesh, display, plan=plan.to_json(), accept_data_change=accept)
    if mesh.is_first:
        for warning in record_actual(plan, result.to_json()):
            show(warning)
    return result


def resume_run(
    run: RunName, accept_data_change: AcceptData = False, ranks: Ranks = None, as_json: AsJson = False
) -> None:
    """Continue a run from its newest valid checkpoint, with its own recipe."""
    from tunesmith.track.index import find_run

    found = find_run(run)
    how = Start(str(found.path), yes=True, accept_data_change=accept_data_change)
    own = [f"run.folder={found.path.parent}", *([] if ranks is None else [f"run.ranks={ranks}"])]
    start(str(found.config_file), own, how, as_json)


def agreed() -> bool:
    """Ask once on a terminal; without one the answer is yes."""
    return not sys.stdin.isatty() or typer.confirm("Start?", default=True, err=True)


def check_folder(loaded: Loaded, how: Start) -> None:
    """Refuse a named folder that cannot take a new run, before anything is planned (UsageError E190, E019)."""
    from tunesmith.configuring.output_folder import check_output_folder
    from tunesmith.track.run_dir import check_empty

    settings = loaded.recipe.run
    if settings.name is None or run_to_resume(loaded, how.resume) is not None:
        return
    path = Path(settings.folder) / settings.name
    check_empty(path)
    check_output_folder(path)


def run_to_resume(loaded: Loaded, resume: str | None) -> Path | None:
    """The directory that `--resume` means: a run by name, or with `auto` the one of run.name when it exists."""
    from pathlib import Path

    from tunesmith.errors import Fix, UsageError, Where
    from tunesmith.track.index import find_run
    from tunesmith.track.run_dir import is_run

    settings = loaded.recipe.run
    if resume is None:
        return None
    if resume != "auto":
        return find_run(resume, settings.folder).path
    if settings.name is None:
        raise UsageError(
            "E026",
            "--resume auto needs the name of the run",
            where=Where(field="run.name"),
            fixes=[Fix("name the run: run.name=NAME"), Fix("name the run to continue: --resume RUN")],
        )
    path = Path(settings.folder) / settings.name
    return path if is_run(path) else None


def open_run(loaded: Loaded, old: Path | None, mesh: Mesh) -> RunDir:
    """The same directory on every rank, made by the first."""
    from pathlib import Path

    from tunesmith.track.run_dir import RunDir

    settings, recipe = loaded.recipe.run, loaded.recipe
    if old is not None:
        return RunDir.open(old)
    slug = f"{recipe.objective.title}-{recipe.model.adapter.method}-{recipe.model.named}"
    made = RunDir.create(Path(settings.folder), settings.name, slug=slug).path if mesh.is_first else None
    return RunDir(Path(mesh.share(None if made is None else str(made))))
