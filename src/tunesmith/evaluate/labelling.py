"""The labeller that settings ask for, with the file of its votes open while it works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith.errors import UsageError, Where
from tunesmith.evaluate.judge import Judge
from tunesmith.evaluate.label_config import LabelConfig
from tunesmith.evaluate.labellers import ByComparison, ByReward, ByRule, Labeller
from tunesmith.evaluate.rules import find_rule
from tunesmith.evaluate.scoring import Scorer
from tunesmith.rollout.journal import Journal


def check_choice(settings: LabelConfig, prefix: str = "online.label.") -> None:
    """UsageError E270 unless exactly one of reward, rule and judge is set; a rule must be known.

    `prefix` leads to the settings: a path in a recipe, or the dashes of options.
    """
    named = {"reward": settings.reward, "rule": settings.rule, "judge": settings.judge}
    given = [f"{prefix}{name}" for name, value in named.items() if value is not None]
    if len(given) != 1:
        message = f"who marks the answers? {' and '.join(given)} are both set" if given else "who marks the answers?"
        sign = " " if prefix == "--" else "="
        fixes = [f"{prefix}reward{sign}MODEL", f"{prefix}rule{sign}NAME", f"{prefix}judge{sign}..."]
        raise UsageError("E270", message, where=Where(field=f"{prefix}reward"), fixes=fixes)
    if settings.rule is not None:
        find_rule(settings.rule)


@contextmanager
def open_labeller(settings: LabelConfig, votes: Path, prefix: str = "online.label.") -> Iterator[Labeller]:
    """A judge's verdicts go to `votes`; rewards and rules need no such file."""
    check_choice(settings, prefix)
    if settings.reward is not None:
        yield ByReward(Scorer.open(settings.reward))
    elif settings.rule is not None:
        yield ByRule(find_rule(settings.rule))
    else:
        assert settings.judge is not None
        with Journal(votes) as journal:
            yield ByComparison(Judge(settings.judge, journal))
