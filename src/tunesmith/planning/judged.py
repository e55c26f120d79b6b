"""What records that judge answers lack for the objectives of a recipe: labels in every step, balance, ratings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from tunesmith.data.check import Epoch
from tunesmith.data.survey import rounded_up
from tunesmith.errors import DataError, Diagnostic, Fix, Where
from tunesmith.objectives.feedback import KTO
from tunesmith.objectives.reward_modeling import Reward
from tunesmith.recipe import Recipe

BALANCE = (1.0, 4 / 3)  # of good to bad answers, each times its weight (arXiv:2402.01306 section 4.2)
LARGEST_WEIGHT = 1000


def epoch_problems(recipe: Recipe, epoch: Epoch) -> Iterator[Diagnostic]:
    """What an epoch of records that were all read lacks, as a plan will tell it."""
    if not epoch.examples:
        return
    mean_length = epoch.tokens / epoch.examples
    limit, train = recipe.train.tokens_per_step, recipe.train
    sequences = (train.sequences_per_step or 1) if limit is None else limit / mean_length
    yield from label_problems(recipe, epoch.labels, min(sequences, math.ceil(epoch.examples)), mean_length)
    if recipe.task.kind != "pair":
        return
    try:
        yield from rating_problems(recipe, epoch.rated / epoch.examples, epoch.examples, whole=True)
    except DataError as error:
        yield from error.diagnostics


def label_problems(
    recipe: Recipe, labels: Mapping[str, float], sequences: float, mean_length: float
) -> Iterator[Diagnostic]:
    """Warnings about good and bad answers, `labels`; a step holds so many sequences of so many tokens."""
    good, bad = labels.get("good", 0.0), labels.get("bad", 0.0)
    if recipe.task.kind != "feedback" or not good or not bad:
        return
    yield from _rare(recipe, good, bad, sequences, mean_length)
    yield from _unbalanced(recipe, good, bad)


def _rare(recipe: Recipe, good: float, bad: float, sequences: float, mean_length: float) -> Iterator[Diagnostic]:
    """W216 when a step holds less than one answer of the rarer label."""
    fewest, word = min((good, "good"), (bad, "bad"))
    needed = math.ceil((good + bad) / fewest)
    if fewest * sequences >= good + bad:
        return
    if recipe.train.tokens_per_step is None:
        key, size = "train.sequences_per_step", needed
    else:
        key, size = "train.tokens_per_step", rounded_up(math.ceil((needed + 1) * mean_length))
    yield Diagnostic(
        "W216",
        f"{fewest / (good + bad):.1%} of the answers are {word}: many steps of {sequences:.0f} will hold none",
        "warning",
        Where(field=key),
        (f"good {good:,.0f}, bad {bad:,.0f} per epoch",),
        (
            Fix(f"{key}={size}", {key: size}, effect=f"one {word} answer in every step"),
            Fix(f"add answers that are {word}"),
        ),
    )


def _unbalanced(recipe: Recipe, good: float, bad: float) -> Iterator[Diagnostic]:
    """W217 when KTO's weights leave one label more to say than they should."""
    for index, objective in enumerate(recipe.objectives):
        if not isinstance(objective, KTO) or not objective.lambda_good or not objective.lambda_bad:
            continue
        ratio = objective.lambda_good * good / (objective.lambda_bad * bad)
        if BALANCE[0] <= ratio <= BALANCE[1]:
            continue
        group = "objective" if index == 0 else f"also.{index - 1}"
        name, word = ("lambda_bad", "bad") if ratio > BALANCE[1] else ("lambda_good", "good")
        middle = sum(BALANCE) / 2
        wanted = objective.lambda_good * good / bad / middle if name == "lambda_bad" else middle * bad / good
        wanted *= 1.0 if name == "lambda_bad" else objective.lambda_bad
        value, key = float(f"{wanted:.3g}"), f"{group}.{name}"
        fixes = [Fix(f"{key}={value:g}", {key: value})] if value <= LARGEST_WEIGHT else []
        yield Diagnostic(
            "W217",
            f"good answers weigh {ratio:.2g} times as much as bad ones; KTO learns best between 1 and 4/3",
            "warning",
            Where(field=key),
            (
                f"good {good:,.0f}, bad {bad:,.0f} per epoch; lambda_good {objective.lambda_good:g}, "
                f"lambda_bad {objective.lambda_bad:g}",
            ),
            (*fixes, Fix(f"add answers that are {word}")),
        )


def rating_problems(recipe: Recipe, share: float, examples: float, *, whole: bool) -> Iterator[Diagnostic]:
    """W218 when some pairs have no rating for `rating_margin`. Raises E224 when the `whole` data has none at all."""
    for index, objective in enumerate(recipe.objectives):
        if not isinstance(objective, Reward) or not objective.rating_margin or share >= 1:
            continue
        key = "objective.rating_margin" if index == 0 else f"also.{index - 1}.rating_margin"
        off = Fix(f"{key}=0", {key: 0.0})
        write = Fix("write into each pair by how much the chosen answer is better: margin, or both scores")
        if share == 0 and whole:
            raise DataError(
                "E224", "no pair is rated, so rating_margin adds nothing", where=Where(field=key), fixes=[off, write]
            )
        seen = "" if whole else " (estimated)"
        message = f"{(1 - share) * examples:,.0f} of {examples:,.0f} pairs are not rated{seen}: rating_margin adds 0"
        yield Diagnostic("W218", message, "warning", Where(field=key), fixes=(write, off))
