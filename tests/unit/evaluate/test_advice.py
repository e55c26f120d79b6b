"""The table of advice: every row can be reached, nothing is said within an interval, and commands can be typed."""

import shlex
from dataclasses import replace
from pathlib import Path
from string import Formatter

import pytest

from tunesmith.evaluate.advice import RULES, THRESHOLDS, advise, measured_facts
from tunesmith.evaluate.metrics import Score

FIELDS = {
    field for one in RULES for text in (one.says, one.does) for _, field, _, _ in Formatter().parse(text) if field
}
VALUES = dict.fromkeys(FIELDS, "1") | {"id": "name", "config": "config.yaml"}


def score(value: float, half: float = 0.01, n: int = 20) -> Score:
    return Score(value, value - half, value + half, n)


def facts(learned: Score, kept: Score) -> frozenset[str]:
    return measured_facts(learned, kept, 8)


@pytest.mark.parametrize("one", RULES, ids=lambda one: one.name)
def test_every_row_is_reached_by_its_own_facts_and_barred_by_any_other(one):
    assert one.name in {given.rule for given in advise(one.when, VALUES)}
    for fact in one.unless:
        assert one.name not in {given.rule for given in advise({*one.when, fact}, VALUES)}
    for fact in one.when:
        assert one.name not in {given.rule for given in advise(one.when - {fact}, VALUES)}


def test_rows_have_names_of_their_own_and_facts_that_somebody_finds():
    names = [one.name for one in RULES]
    assert len(set(names)) == len(names)
    known = {"forgot", "forgot much", "learned", "little", "wide", "few", "cut", "base", "earlier", "few states"}
    known |= {"mixable", "mixes", "mixes much", "mixing done", "full", "a way back"}
    known |= {"kl", "kl much", "comparable", "watches"}
    assert {fact for one in RULES for fact in one.when | one.unless} <= known


def test_nothing_is_said_within_an_interval():
    within = facts(score(0.5), score(-0.03, half=0.04))
    assert within == {"learned"}
    assert [one.rule for one in advise(within, VALUES)] == ["fine"]


def test_what_is_shown_counts_from_its_threshold():
    least = THRESHOLDS["forgot"]
    assert "forgot" in facts(score(0.5), score(-least, half=least / 2))
    assert "forgot" not in facts(score(0.5), score(-0.9 * least, half=least / 2))
    assert "forgot much" not in facts(score(0.5), score(-0.09))
    assert "forgot much" in facts(score(0.5), score(-0.10))
    assert "learned" not in facts(score(0.01, half=0.005), score(0.0))
    assert "little" in facts(score(0.01), score(0.0))
    assert "little" not in facts(score(0.01, half=0.05), score(0.0))
    assert "wide" in facts(score(0.5), score(-0.03, half=0.06))
    assert "few" in facts(score(0.5), score(-0.9, n=7))
    assert "forgot" not in facts(score(0.5), score(-0.9, n=7))
    assert facts(score(0.5, n=7), score(0.0)) == {"few"}


def test_a_run_that_forgot_is_told_to_mix_and_one_that_mixes_to_mix_more():
    told = [one.rule for one in advise({"forgot", "learned", "mixable", "a way back", "comparable"}, VALUES)]
    assert told == ["mix", "share"]
    told = [one.rule for one in advise({"forgot", "mixable", "mixes", "mixing done", "comparable"}, VALUES)]
    assert told == ["mix more", "kl"]


def test_settings_become_a_command_of_another_run_and_commands_stay():
    rule = next(one for one in RULES if one.name == "mix more")
    (one,) = advise(rule.when, {**VALUES, "config": "'a b/config.yaml'", "more_share": "0.2"}, [rule])
    assert shlex.split(one.command) == [
        *["tunesmith", "train", "a b/config.yaml", "run.name=name-mix-more"],
        "data.general.share=0.2",
    ]
    share = next(one for one in RULES if one.name == "share")
    (told,) = advise(share.when, {**VALUES, "run": "runs/x"}, [share])
    assert told.command == "tunesmith merge runs/x OUT --share 0.7"
    assert advise(set(), VALUES, [replace(rule, when=frozenset(), does="")])[0].command == ""


def test_the_guide_names_every_threshold():
    guide = (Path(__file__).parents[3] / "docs" / "guides" / "forgetting.md").read_text(encoding="utf-8")
    for name in ("forgot", "forgot much", "learned", "little", "wide"):
        assert f"{100 * THRESHOLDS[name]:g} %" in guide, name
