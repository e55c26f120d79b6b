"""A short run at a rising learning rate, to see which rates teach the model something."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import Fix, Interrupted, Preempted, TunesmithError
from tunesmith.recipe import Recipe
from tunesmith.running.attempt import attempt
from tunesmith.running.build import Context, build_loop
from tunesmith.running.inputs import gather_inputs, sized
from tunesmith.track.progress import Progress
from tunesmith.track.run_dir import RunDir
from tunesmith.track.tracker import Tracking
from tunesmith.train.rates import RateCurve, has_diverged, read_curve
from tunesmith.train.signals import Request, Signals


class EnoughError(Exception):
    """Ends the run after a step; nobody outside sees it."""


def rising(recipe: Recipe, low: float, high: float, steps: int, folder: Path) -> Recipe:
    """The recipe with a rate that rises from `low` to `high` in `steps` steps, and nothing that outlives the search.

    It has one step more, which is never run: the loop would save a checkpoint after its last one.
    """
    schedule = {"name": "rising", "warmup": 0.0, "min_ratio": low / high}
    train = recipe.train.model_dump() | {
        "steps": steps + 1,
        "schedule": schedule,
        "evaluate_every": 0,
        "sample_every": 0,
        "early_stopping": None,
        "profile": False,
    }
    train["optimizer"] |= {"lr": high}
    train["checkpoint"] |= {"every": 0, "minutes": 0}
    train["stability"] |= {"diverged_steps": 0}  # where the loss goes is what is looked for
    whole = recipe.model_dump() | {"train": train}
    whole["run"] |= {"folder": str(folder), "name": "rates", "report_to": ()}
    return type(recipe).model_validate(whole)


def search_rates(recipe: Recipe, mesh: Mesh, display: Progress) -> RateCurve:
    """Runs what `rising` made; ends early when the loss has gone for good. NumericalError E340 when it never fell."""
    run = RunDir.create(Path(recipe.run.folder), recipe.run.name)
    rates: list[float] = []
    losses: list[float] = []

    def watch(signals: Signals) -> Callable[[int, int, dict[str, float]], None]:
        def told(step: int, total: int, values: dict[str, float]) -> None:
            display.step(step, total - 1, values)
            rates.append(values["train/lr"])
            losses.append(values["train/loss"])
            if step == total - 1 or has_diverged(losses):
                raise EnoughError
            if (request := signals.requested()) is not None and request.stops:
                raise stopped(request, step)

        return told

    def work(tracker: Tracking, signals: Signals) -> RateCurve:
        display.phase("loading the model")
        around = Context(run, mesh, tracker, display, None, False)
        inputs = gather_inputs(recipe, mesh, display)
        loop = build_loop(sized(recipe, inputs, mesh), inputs, around, about={})
        loop.parts.on_step = watch(signals)
        with suppress(EnoughError), closing(loop):
            loop.run(signals)
        return read_curve(rates, losses)

    return attempt(recipe, run, mesh, work, keeps=False)


def stopped(request: Request, step: int) -> TunesmithError:
    """The error that ends a search before its end: exit code 75 or 130, as of a run, but nothing is saved."""
    kind = Preempted if request is Request.TERMINATE else Interrupted
    message = f"the search was stopped after {step} steps; a search keeps nothing"
    return kind("E380", message, fixes=[Fix("search again, with fewer steps: --steps 50")])
