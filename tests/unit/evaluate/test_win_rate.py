import pytest

from tunesmith.errors import DataError
from tunesmith.evaluate.labellers import ByComparison, ByRule
from tunesmith.evaluate.rules import find_rule
from tunesmith.evaluate.win_rate import win_rate
from tunesmith.rollout.generator import Generated
from tunesmith.rollout.prompts import Prompt


def made(*texts: str) -> list[Generated]:
    return [Generated(text, (1,), True) for text in texts]


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"Prompt {index}", "a.jsonl", index + 1) for index in range(count)]


def test_ties_count_one_half_and_the_interval_is_wilsons():
    one, other = made("a", "aaa", "aa", "same", "", "x"), made("aa", "a", "bb", "same", "", "")
    found = win_rate(prompts(6), one, other, ByRule(find_rule("shorter")))
    assert (found.wins, found.losses, found.ties, found.open) == (2, 1, 3, 0)
    assert found.rate.value == pytest.approx(3.5 / 6)
    assert (found.rate.low, found.rate.high) == (pytest.approx(0.24108, abs=1e-5), pytest.approx(0.86053, abs=1e-5))
    assert [duel.hit for duel in found.duels] == [1.0, 0.0, 0.5, 0.5, 0.5, 1.0]
    assert found.duels[1].record == "a.jsonl:2"


def test_lengths_of_wins_and_losses_show_whether_length_decides():
    one, other = made("a", "aaaa", "aa"), made("aaa", "a", "aaa")
    short = win_rate(prompts(3), one, other, ByRule(find_rule("shorter")))
    assert (short.length_of_wins, short.length_of_losses, short.longer_wins) == (1.5, 4.0, 0.0)
    long = win_rate(prompts(3), one, other, ByRule(find_rule("longer")))
    assert long.longer_wins == 1.0
    assert (long.length.value, long.against_length.value) == (pytest.approx(7 / 3), pytest.approx(7 / 3))
    assert "duels" not in long.to_json()


class Lazy:
    def compare(self, questions, on_progress=None):
        return ["first", *[None] * (len(questions) - 1)] if questions else []

    def warnings(self):
        return []


def test_open_prompts_are_counted_and_none_at_all_is_an_error():
    found = win_rate(prompts(3), made("a", "b", "c"), made("x", "y", "z"), ByComparison(Lazy()))
    assert (found.wins, found.open, found.rate.n) == (1, 2, 1)

    class Nobody(Lazy):
        def compare(self, questions, on_progress=None):
            return [None] * len(questions)

    with pytest.raises(DataError, match="E264"):
        win_rate(prompts(1), made("a"), made("x"), ByComparison(Nobody()))
