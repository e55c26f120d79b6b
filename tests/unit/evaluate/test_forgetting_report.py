"""What was learned beside what was lost: figures worked out by hand, the front, and which weights to take."""

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluate.changes import Draws, Sheet, Side, compare, draw
from tunesmith.evaluate.forgetting import BASE, FEWEST, Report, Weights, choose, report_on
from tunesmith.evaluate.forgetting_told import markdown, page
from tunesmith.evaluate.front import beats, unbeaten
from tunesmith.evaluate.suite import Measure
from tunesmith.track.forgetting import explained, figure, perplexity, spread, state_rows

LOSS, RIGHT = Measure("loss", lower=True), Measure("accuracy", binary=True)


def losses(values, task="held out", side: Side = "new", weights=None) -> Sheet:
    names = tuple(str(at) for at in range(len(values)))
    return Sheet(task, side, LOSS, names, tuple(map(float, values)), tuple(weights or [1.0] * len(values)))


def hits(values, task="reading", side: Side = "general") -> Sheet:
    names = tuple(str(at) for at in range(len(values)))
    return Sheet(task, side, RIGHT, names, tuple(map(float, values)), (1.0,) * len(values))


def state(name, new, general, step=None, *, final=False) -> Weights:
    """Weights with an equal loss at ten records of each side, but for a little that differs between records."""
    spread = np.linspace(0.99, 1.01, 10)
    return Weights(name, step, final, (losses(new * spread), losses(general * spread, "general data", "general")))


def report(*states: Weights, weight=0.5) -> Report:
    return report_on("run", states, weight)


def test_a_loss_changes_by_the_part_of_it_that_is_gone():
    one, other = losses([2.0, 4.0], weights=[1.0, 3.0]), losses([1.0, 3.0], weights=[1.0, 3.0])
    assert one.score.value == pytest.approx(14 / 4)
    assert draw(one, other).value == pytest.approx((3.5 - 2.5) / 3.5)
    assert draw(other, one).value == pytest.approx(-(3.5 - 2.5) / 2.5)


def test_a_share_changes_by_its_difference_and_the_test_is_mcnemars():
    one, other = hits([1, 1, 1, 1, 0]), hits([0, 0, 1, 1, 1])
    found = compare(one, other, draw(one, other))
    assert found.change.value == pytest.approx(-0.2)
    assert (found.better, found.worse, found.p) == (1, 2, 1.0)
    assert found.verdict == "open"
    assert found.change.low < -0.2 < found.change.high


def test_what_all_records_lost_is_worse_and_noise_is_open():
    one = losses([1.0, 2.0] * 10)
    worse, noise = losses([1.2, 2.4] * 10), losses([1.1, 2.0, 0.9, 2.0] * 5)
    assert compare(one, worse, draw(one, worse)).verdict == "worse"
    assert compare(one, worse, draw(one, worse)).change.value == pytest.approx(-0.2)
    assert compare(one, noise, draw(one, noise)).verdict == "open"


def test_the_same_records_are_drawn_for_all_weights():
    """So that the gap between two of them has an interval of its own, narrower than theirs."""
    base = losses(np.linspace(1, 3, 30))
    one, other = (losses(np.linspace(1, 3, 30) ** power) for power in (0.8, 0.75))
    gap = draw(base, other).drawn - draw(base, one).drawn
    assert np.ptp(gap) < 0.5 * np.ptp(draw(base, one).drawn)


def test_the_summary_is_weighed_as_said():
    """New task: 2.0 to 0.5, three quarters gone. General: 1.0 to 1.2, a fifth on top."""
    found = report(state(BASE, 2.0, 1.0), state("step 4", 0.5, 1.2, 4, final=True), weight=0.25)
    one = found.last
    assert one.learned.value == pytest.approx(0.75)
    assert one.kept.value == pytest.approx(-0.2)
    assert one.summary.value == pytest.approx(0.75 * 0.75 - 0.25 * 0.2)
    assert found.points[0].summary.value == 0
    assert "0.75 x learned + 0.25 x general" in explained(found.to_json())


def test_tasks_of_one_side_count_the_same():
    base = (losses([2.0] * 10), losses([1.0] * 10, "general data", "general"), hits([1.0] * 10))
    tuned = (losses([1.0] * 10), losses([1.1] * 10, "general data", "general"), hits([1.0] * 7 + [0.0] * 3))
    found = report(Weights(BASE, None, False, base), Weights("step 1", 1, True, tuned))
    assert found.last.kept.value == pytest.approx((-0.1 - 0.3) / 2)
    assert found.last.learned.value == pytest.approx(0.5)


def test_the_front_by_hand():
    """Of (learned, kept): the base (0, 0), a (0.5, -0.1), b (0.4, -0.2), c (0.8, -0.3), d (0.8, -0.3)."""
    points = {"base": (0.0, 0.0), "a": (-0.5, 0.1), "b": (-0.4, 0.2), "c": (-0.8, 0.3), "d": (-0.8, 0.3)}
    assert unbeaten(points) == ("base", "a", "c", "d")
    assert beats((0.0, 1.0), (0.0, 2.0))
    assert not beats((0.0, 1.0), (0.0, 1.0))
    assert not beats((0.0, 2.0), (1.0, 1.0))
    found = report(state(BASE, 1.0, 1.0), state("a", 0.5, 1.1, 1), state("b", 0.6, 1.2, 2), state("c", 0.2, 1.3, 3))
    assert found.front == (BASE, "a", "c")


PLACES = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5), st.integers(0, 2)), min_size=1, max_size=12)


@given(PLACES)
def test_nothing_on_the_front_is_beaten_and_all_else_is(places):
    points = {at: tuple(map(float, place)) for at, place in enumerate(places)}
    front = unbeaten(points)
    assert front
    for at, point in points.items():
        better = [name for name, other in points.items() if beats(other, point)]
        assert (at in front) == (not better)
        assert at in front or any(name in front for name in better)


def test_other_weights_are_taken_only_where_they_are_shown_to_be_better():
    base = state(BASE, 2.0, 1.0)
    early, late = state("step 4", 0.6, 1.02, 4), state("step 8 (final)", 0.5, 1.6, 8, final=True)
    found = report(base, early, late)
    assert found.best == "step 4"
    assert "ahead of that of step 8 (final)" in found.why
    generator = np.random.default_rng(0)
    close = Weights("step 6", 6, False, (losses(0.5 * generator.uniform(0.3, 1.7, 10)), late.sheets[1]))
    assert report(base, close, late).best == "step 8 (final)"
    assert report(base, late).best == "step 8 (final)"


def test_the_base_is_taken_where_all_others_weigh_less():
    found = report(state(BASE, 2.0, 1.0), state("step 8", 1.9, 1.5, 8))
    assert found.best == BASE
    assert report(state(BASE, 2.0, 1.0), state("step 8", 1.9, 1.5, 8), weight=0.0).best == "step 8"


def test_few_records_are_told():
    base = Weights(BASE, None, False, (losses([1.0] * (FEWEST - 1)), hits([1.0] * FEWEST)))
    (warning,) = report(base, Weights("final", None, True, base.sheets)).warnings
    assert warning.code == "W458"
    assert "the new task is measured on 7 records" in warning.message
    assert report(state(BASE, 1.0, 1.0), state("final", 1.0, 1.0, final=True)).warnings == ()


def test_pages_hold_every_state_and_are_well_formed():
    awkward = "step 4 <b>&"
    found = report(state(BASE, 2.0, 1.0), state(awkward, 0.5, 1.2, 4), state("step 8", 0.4, 1.9, 8, final=True))
    content = found.to_json()
    told, shown = markdown(content), page(content)
    for row in state_rows(content):
        assert f"| {row[0]} |" in told
    assert "| no difference shown |" not in told
    assert f"## {awkward} against the base" in told
    root = ElementTree.fromstring(shown.removeprefix("<!DOCTYPE html>\n"))
    (plot,) = root.iter("svg")
    assert len(list(plot.iter("circle"))) == 3
    assert [one.get("class") for one in plot.iter("path")] == ["front"]
    assert [one.get("class") for one in plot.iter("circle")].count("dot chosen") == 1
    assert "<script" not in shown
    assert "http" not in shown


def test_figures_are_told_in_their_unit():
    assert figure(1.0, "loss") == "1.000"
    assert perplexity(1.0) == "2.72"
    assert spread({"value": -0.1, "low": -0.2, "high": 0.05}) == "-10.0 (-20.0 to +5.0)"
    assert figure(0.5, "accuracy") == "50.0 %"
    assert figure(1.234, "bits_per_byte") == "1.234"


def test_the_best_of_several_has_to_be_further_ahead():
    edge = Draws(0.01, np.r_[np.full(24, -0.001), np.full(976, 0.01)])  # 2.4 % of the draws speak against it
    assert edge.score(0).low > 0 > edge.score(0, among=2).low
    states = [state(BASE, 1, 1), state("step 1", 0.4, 1, 1), state("step 2", 0.5, 1, 2)]
    base, first, second, last = report(*states, state("step 3", 0.5, 1, 3, final=True)).points
    drawn = {"step 1": edge, "step 2": Draws(0, np.zeros(1000)), "step 3": Draws(0, np.zeros(1000))}
    assert choose([base, first, last], drawn)[0] == "step 1"
    assert choose([base, first, second, last], drawn)[0] == "step 3"


def test_the_base_is_taken_only_where_all_weights_are_shown_to_be_worse():
    states = [state(BASE, 1, 1), state("step 1", 1.2, 1.2, 1), state("step 2", 1.3, 1.3, 2, final=True)]
    base, first, last = report(*states).points
    drawn = {one.name: Draws(one.summary.value, np.full(1000, one.summary.value)) for one in (first, last)}
    assert choose([base, first, last], drawn)[0] == BASE
    open_last = replace(last, summary=replace(last.summary, high=0.1))
    assert choose([base, first, open_last], drawn)[0] == "step 1"
