"""Advice that the command at hand can follow: one without a recipe has none of its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tunesmith.errors import Diagnostic, Fix, TunesmithError

NO_RECIPE = frozenset(["eval", "score", "sample", "label", "chat", "serve", "merge", "average", "export", "adapters"])
SETTING = "data.on_bad"
INSTEAD = Fix("take such records out of the file")


def fitting(error: TunesmithError, words: Sequence[str]) -> TunesmithError:
    """The error with advice that the command of these words can follow."""
    if words and words[0] in NO_RECIPE:
        error.diagnostic = _without_setting(error.diagnostic)
        error.others = tuple(map(_without_setting, error.others))
    return error


def _without_setting(found: Diagnostic) -> Diagnostic:
    kept = tuple(fix for fix in found.fixes if SETTING not in fix.set and SETTING not in fix.label)
    return found if kept == found.fixes else replace(found, fixes=(*kept, INSTEAD))
