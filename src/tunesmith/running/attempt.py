"""One attempt at a run: its lock, its tracker, its signals, and how it ended, whatever happens inside."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import TunesmithError
from tunesmith.recipe import Recipe
from tunesmith.redaction import redacted_tree
from tunesmith.running.determinism import no_kernel, refused_operation
from tunesmith.track.limits import limit_error, no_memory
from tunesmith.track.run_dir import RunDir
from tunesmith.track.status import State
from tunesmith.track.tracker import NullTracker, Tracking, open_tracker
from tunesmith.train.out_of_memory import is_out_of_memory
from tunesmith.train.signals import Signals

Result = TypeVar("Result")

STOPPED: dict[int, State] = {75: "preempted", 130: "stopped"}


def attempt(
    recipe: Recipe, run: RunDir, mesh: Mesh, work: Callable[[Tracking, Signals], Result], *, keeps: bool = True
) -> Result:
    """What `work` returns; the run's status and events tell how it ended. Every rank calls it, the first one writes.

    `keeps` says whether a signal is answered by a checkpoint. An error of ours is told as it is, a bug leaves its
    traceback in the run's directory; both are raised again.
    """
    with run.lock() if mesh.is_first else nullcontext(), Signals(saves=keeps) as signals:
        tracker: Tracking = begin_tracking(recipe, run) if mesh.is_first else NullTracker()
        state: State = "failed"
        code = 1
        try:
            result = work(tracker, signals)
            state, code = "finished", 0
        except SystemExit as error:
            state, code = "stopped", int(error.code or 0)
            raise
        except Exception as error:
            if is_out_of_memory(error):
                error = no_memory(error, recipe.train.microbatch_limit(mesh.device().type))
            elif not isinstance(error, TunesmithError) and (limited := limit_error(error)) is not None:
                error = limited
            elif (operation := refused_operation(error)) is not None:
                error = no_kernel(operation, error, mesh.device())
            if not isinstance(error, TunesmithError):
                trace = run.crash(traceback.format_exc())
                tracker.event("crash", {"message": f"{type(error).__name__}: {error}", "traceback": str(trace)})
                raise
            state, code = STOPPED.get(error.exit_code, "failed"), error.exit_code
            tracker.event("stopped", {"diagnostic": error.diagnostic.to_json()})
            raise error
        finally:
            tracker.finish(state, code)
    return result


def begin_tracking(recipe: Recipe, run: RunDir) -> Tracking:
    settings = redacted_tree(recipe.model_dump(mode="json"))
    try:
        return open_tracker(run, recipe.run.report_to, run.next_attempt(), settings)
    except RuntimeError as error:  # the thread of the heartbeat could not be started
        raise limit_error(error) or error from error
