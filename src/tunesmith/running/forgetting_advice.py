"""What the recipe of a run says about guards, as the facts and figures that the table of advice reads."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Sequence

from tunesmith.evaluate.advice import THRESHOLDS, Advice, advise, measured_facts
from tunesmith.evaluate.forgetting import BASE, FEWEST, Report
from tunesmith.models.adapter_config import TargetedConfig
from tunesmith.models.kinds import NO_WEIGHTS
from tunesmith.models.loftq_config import LoftqConfig
from tunesmith.objectives import KLToReference, Objective
from tunesmith.recipe import Recipe
from tunesmith.running.forgetting_tasks import Wish
from tunesmith.track.run_dir import RunDir

FIRST_COEFFICIENT = 0.1


def advice_on(report: Report, recipe: Recipe, run: RunDir, wish: Wish, *, cut: bool) -> tuple[Advice, ...]:
    """The rows of the table that the report and the recipe call for; `cut`: more records are there to measure."""
    last = report.last
    facts = {*measured_facts(last.learned, last.kept, FEWEST), *recipe_facts(recipe)}
    if cut:
        facts.add("cut")
    if report.best == BASE:
        facts.add("base")
    elif report.best != last.name:
        facts.add("earlier")
    if len(report.points) - 1 < THRESHOLDS["states"]:
        facts.add("few states")
    return advise(facts, values_of(report, recipe, run, wish))


def recipe_facts(recipe: Recipe) -> set[str]:
    """Guards that are on, and those that would go with the rest of the recipe."""
    general, adapter, stopping = recipe.data.general, recipe.model.adapter, recipe.train.early_stopping
    held = kl_of(recipe)
    headed = isinstance(adapter, TargetedConfig) and "lm_head" in adapter.targets
    facts = {
        "mixable": recipe.task.kind == "sequence" and recipe.online is None,
        "mixes": bool(general.train),
        "mixes much": bool(general.train) and general.share >= THRESHOLDS["share"],
        "mixing done": bool(general.train) or recipe.task.kind != "sequence",
        "full": adapter.word == "full",
        "a way back": adapter.word not in NO_WEIGHTS and not isinstance(adapter, LoftqConfig),
        "kl": held is not None,
        "kl much": held is not None and held.coefficient >= THRESHOLDS["coefficient"],
        "comparable": recipe.model.reference.path is None and not headed,
        "watches": stopping is not None and stopping.watch == "general",
    }
    return {name for name, holds in facts.items() if holds}


def kl_of(recipe: Recipe) -> KLToReference | None:
    return next((one for one in recipe.also if isinstance(one, KLToReference)), None)


def also(recipe: Recipe, coefficient: float) -> str:
    """The setting of all further objectives, with this coefficient of the divergence from the reference."""
    others = [one for one in recipe.also if not isinstance(one, KLToReference)]
    listed: Sequence[Objective] = (*others, KLToReference(coefficient=float(f"{coefficient:.2g}")))
    told = [{"name": one.title, **one.model_dump(mode="json", exclude_defaults=True)} for one in listed]
    return shlex.quote(f"also={json.dumps(told)}")


def values_of(report: Report, recipe: Recipe, run: RunDir, wish: Wish) -> dict[str, str]:
    """Everything that a template of the table may name."""
    last, best, train = report.last, report.chosen, recipe.train
    held = kl_of(recipe)
    coefficient = FIRST_COEFFICIENT if held is None else held.coefficient
    length = max((one.step or 0 for one in report.points), default=0) or train.steps or 100
    return {
        "run": shlex.quote(str(run.path)),
        "id": re.sub(r"[^A-Za-z0-9._-]+", "-", run.id)[:80].lstrip("._-") or "run",
        "config": shlex.quote(str(run.config_file)),
        "learned": percent(last.learned.value),
        "kept": percent(last.kept.value),
        "low": percent(last.kept.low),
        "high": percent(last.kept.high),
        "best": best.name,
        "best_kept": percent(best.kept.value),
        "best_learned": percent(best.learned.value),
        "best_weights": "auto" if best.step is None else f"step-{best.step}",
        "rise": f"{math.ceil(round(100 * max(0.0, -best.kept.value), 6) + 1) / 100:g}",
        "every": str(max(1, length // 10)),
        "general_eval": "" if recipe.data.general.eval else " data.general.eval=FILE",
        "share": f"{recipe.data.general.share:g}",
        "more_share": f"{min(2 * recipe.data.general.share, 0.5):g}",
        "lower_rate": f"{train.optimizer.lr / 3:.2g}",
        "higher_rate": f"{train.optimizer.lr * 3:.2g}",
        "coefficient": f"{coefficient:g}",
        "also_new": also(recipe, FIRST_COEFFICIENT),
        "also_more": also(recipe, 3 * coefficient),
        "also_less": also(recipe, coefficient / 3),
        "states": str(len(report.points) - 1),
        "more_records": str(4 * wish.limit),
    }


def percent(value: float) -> str:
    return f"{100 * value:+.1f} %"
