"""What the curves of a run say is wrong: each sign with its evidence, its likely causes and a change of the recipe."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tunesmith.errors import Diagnostic, Fix
from tunesmith.track.layers import layer_signs
from tunesmith.track.plot import smoothed
from tunesmith.track.reader import Row, series

FEWEST = 30  # steps below which a curve says nothing
WINDOW = 32  # steps that a spike is compared with
FAR = 8.0  # times the usual distance from the middle of the window
TENTH = 10
FELL = 0.01  # share of the loss by which it must have fallen to have learned something
STOOD = 0.02  # share of its whole fall that a loss may still fall in the last half of a plateau
WORSE = 0.02  # share by which held-out loss is above its best when a run has learned by heart

LOST = 0.05  # share by which the loss on general data is above its start when a model has forgotten


@dataclass(frozen=True, slots=True)
class Curves:
    """Training and evaluation losses with their steps, and the peak rate."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    eval_steps: tuple[int, ...]
    eval_losses: tuple[float, ...]
    rate: float

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Curves:
        rows = list(rows)
        steps, losses = series(rows, "train/loss")
        eval_steps, held_out = series(rows, "eval/loss")
        _, rates = series(rows, "train/lr")
        return cls(tuple(steps), tuple(losses), tuple(eval_steps), tuple(held_out), max(rates, default=0.0))


def signs(rows: Iterable[Row]) -> list[Diagnostic]:
    """What should worry about a run, the gravest first; nothing for one of fewer than 30 steps."""
    rows = list(rows)
    curves = Curves.of(rows)
    beside = [*forgotten(rows), *layer_signs(rows, curves.rate)]
    if len(curves.losses) < FEWEST:
        return by_heart(curves) + beside
    found = diverged(curves) or unmoved(curves)
    return found + spikes(curves) + by_heart(curves) + beside + (plateau(curves) if not found else [])


def ends(losses: Sequence[float]) -> tuple[float, float]:
    """The mean loss of the first tenth of the steps and of the last."""
    size = max(1, len(losses) // TENTH)
    return statistics.fmean(losses[:size]), statistics.fmean(losses[-size:])


def diverged(curves: Curves) -> list[Diagnostic]:
    first, last = ends(curves.losses)
    if last <= 1.1 * first:
        return []
    evidence = (f"loss {first:.4f} in the first tenth of the steps, {last:.4f} in the last", *rate_of(curves))
    fixes = (slower(curves, 10), Fix("search a rate: tunesmith lr-find RECIPE"))
    return [warning("W343", "the loss rose over the run", evidence, fixes)]


def unmoved(curves: Curves) -> list[Diagnostic]:
    first, last = ends(curves.losses)
    if last < (1 - FELL) * first:
        return []
    evidence = (f"loss {first:.4f} in the first tenth of the steps, {last:.4f} in the last", *rate_of(curves))
    fixes = (
        Fix("search a rate: tunesmith lr-find RECIPE", effect="the usual cause is a rate that is too low"),
        Fix("look at what is scored: tunesmith data preview RECIPE", effect="the second: wrong tokens are trained"),
    )
    return [warning("W344", "the loss did not fall", evidence, fixes)]


def spikes(curves: Curves) -> list[Diagnostic]:
    """Steps far above the middle of the steps before them, by the median, which one spike does not move."""
    found = []
    for place in range(WINDOW, len(curves.losses)):
        window = curves.losses[place - WINDOW : place]
        middle = statistics.median(window)
        spread = statistics.median(abs(loss - middle) for loss in window)
        if curves.losses[place] > middle + FAR * max(spread, 1e-3 * abs(middle)):
            found.append(place)
    if not found:
        return []
    places = ", ".join(f"{curves.steps[place]} ({curves.losses[place]:.2f})" for place in found[:5])
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    fixes = (
        Fix("leave such steps out: train.stability.on_spike=skip", {"train.stability.on_spike": "skip"}),
        slower(curves, 2),
    )
    return [warning("W345", f"the loss jumped in {len(found)} steps", (f"steps {places}{more}",), fixes)]


def by_heart(curves: Curves) -> list[Diagnostic]:
    """Held-out loss that rises while training loss falls."""
    if len(curves.eval_losses) < 2:
        return []
    best = min(range(len(curves.eval_losses)), key=curves.eval_losses.__getitem__)
    lowest, last = curves.eval_losses[best], curves.eval_losses[-1]
    if last <= (1 + WORSE) * lowest:
        return []
    step = curves.eval_steps[best]
    fixes = (
        Fix(f"stop there: train.steps={step}", {"train.steps": step}),
        Fix("use the weights of that step: --weights best", effect="where they were kept"),
        Fix("stop by itself: train.early_stopping.patience=2", {"train.early_stopping.patience": 2}),
    )
    evidence = (f"evaluation loss {lowest:.4f} at step {step}, {last:.4f} at the end",)
    return [warning("W346", "the model learned its data by heart", evidence, fixes)]


def forgotten(rows: Iterable[Row]) -> list[Diagnostic]:
    """Held-out general loss that is above what it was before the first step."""
    steps, losses = series(rows, "eval/general_loss")
    if len(losses) < 2 or losses[-1] <= (1 + LOST) * losses[0]:
        return []
    last = max((step for step, loss in zip(steps, losses, strict=True) if loss <= (1 + LOST) * losses[0]), default=0)
    evidence = (f"loss on general data {losses[0]:.4f} at step {steps[0]}, {losses[-1]:.4f} at the end",)
    if last:
        evidence = (*evidence, f"within {LOST:.0%} of the start until step {last}")
    share, coefficient = "data.general.share", 0.1
    also = {"also": [{"name": "kl_to_reference", "coefficient": coefficient}]}
    fixes = (
        Fix(f"mix general data in: data.general.train=FILE {share}=0.1", {share: 0.1}, "the surest"),
        Fix("stay near the start: also=[{name: kl_to_reference, coefficient: 0.1}]", also),
        Fix("stop in time: train.early_stopping.watch=general", {"train.early_stopping.watch": "general"}),
    )
    return [warning("W385", "the model lost some of what it could do", evidence, fixes)]


def plateau(curves: Curves) -> list[Diagnostic]:
    """A loss that fell early and then stood for half of the run."""
    smooth = smoothed(curves.losses)
    half = smooth[len(smooth) // 2]
    fall, rest = max(smooth) - min(smooth), half - min(smooth[len(smooth) // 2 :])
    spread = statistics.pstdev(curves.losses[len(smooth) // 2 :])
    if rest > STOOD * fall or spread > fall:
        return []
    evidence = (f"loss {half:.4f} after half of the steps, {smooth[-1]:.4f} at the end",)
    steps = curves.steps[len(smooth) // 2]
    fix = Fix(f"half of the steps do: train.steps={steps}", {"train.steps": steps})
    return [warning("W347", "the second half of the run taught nothing more", evidence, (fix,))]


def slower(curves: Curves, times: int) -> Fix:
    rate = float(f"{curves.rate / times:.1e}")
    return Fix(f"lower the rate: train.optimizer.lr={rate:g}", {"train.optimizer.lr": rate}, "the usual cause")


def rate_of(curves: Curves) -> tuple[str, ...]:
    return (f"peak learning rate {curves.rate:g}",) if curves.rate else ()


def warning(code: str, message: str, evidence: tuple[str, ...], fixes: tuple[Fix, ...]) -> Diagnostic:
    return Diagnostic(code, message, "warning", None, evidence, fixes)
