import json
import math
from pathlib import Path

import pytest

from tunesmith.data.config import DataConfig, SourceConfig
from tunesmith.data.entries import read_entries
from tunesmith.errors import DataError, NumericalError, UsageError
from tunesmith.evaluate.label_config import LabelConfig
from tunesmith.evaluate.labellers import ByComparison, ByReward, ByRule, Marks, Question
from tunesmith.evaluate.labelling import check_choice, open_labeller
from tunesmith.evaluate.outcomes import Choice, Labelled, label, write_records
from tunesmith.evaluate.rules import find_rule
from tunesmith.rollout.answers import Answered, read_answers
from tunesmith.rollout.prompts import Prompt
from tunesmith.types import Feedback, Message, Pair, Ranking

CHAT = Prompt((Message("user", "Say it"),), "a.jsonl", 1, reference="42")


def row(*answers: str, prompt: Prompt = CHAT, finished: tuple[bool, ...] | None = None) -> Answered:
    return Answered(prompt, answers, finished or (True,) * len(answers))


@pytest.mark.parametrize(
    ("rule", "answer", "mark"),
    [
        ("shorter", "four", -4.0),
        ("longer", "four", 4.0),
        ("length_between:2:4", "four", 0.0),
        ("length_between:6:9", "four", -2.0),
        ("length_between:1:3", "four", -1.0),
        ("json", ' {"a": 1} ', 1.0),
        ("json", '{"a": 1} Done.', 0.0),
        ("contains:a:b", "it is a:b.", 1.0),
        ("contains:a:b", "it is b", 0.0),
        ("lacks:As an AI", "As an AI I", 0.0),
        ("lacks:As an AI", "Yes", 1.0),
        (r"regex:^\d+$", "17", 1.0),
        (r"regex:^\d+$", "17.", 0.0),
        ("exact", " 42\n", 1.0),
        ("exact", "41", 0.0),
    ],
)
def test_rules(rule, answer, mark):
    assert find_rule(rule).mark(answer, "42") == mark


@pytest.mark.parametrize("rule", ["shortest", "json:5", "contains:", "regex:(", "length_between:9:1", "length_between"])
def test_unknown_rules_and_bad_arguments_are_refused(rule):
    with pytest.raises(UsageError, match="E265"):
        find_rule(rule)


def test_exact_without_a_reference_names_the_record():
    with pytest.raises(DataError, match=r"a\.jsonl:7") as caught:
        ByRule(find_rule("exact")).mark([row("42", prompt=Prompt("Say", "a.jsonl", 7))])
    assert caught.value.diagnostic.code == "E269"


class Rewards:
    def __init__(self, *values: float) -> None:
        self.values = list(values)
        self.asked: list = []

    def score(self, items, on_progress=None):
        self.asked = list(items)
        return self.values


def test_rewards_are_asked_in_the_form_of_the_prompt():
    model = Rewards(1.0, 3.0, 2.0)
    marks = ByReward(model).mark([row("x", "y"), row("z", prompt=Prompt("Say", "a", 2))])
    assert marks == [Marks((1.0, 3.0)), Marks((2.0,))]
    assert model.asked[0] == (CHAT.turns, (Message("assistant", "x"),))
    assert model.asked[2] == ("Say", "z")
    with pytest.raises(NumericalError, match="E151"):
        ByReward(Rewards(math.nan)).mark([row("x")])


class Alphabet:
    """The later letter wins; `bad` is bad."""

    def compare(self, questions, on_progress=None):
        def outcome(question: Question):
            if "open" in question.first:
                return None
            if question.first[0] == question.second[0] == "#":
                return "bad"
            return "first" if question.first > question.second else "second"

        return [outcome(question) for question in questions]

    def warnings(self):
        return []


def test_comparisons_become_shares_of_meetings_won():
    labeller = ByComparison(Alphabet())
    marks = labeller.mark([row("a", "c", "b"), row("a", "a"), row("#1", "#2"), row("open", "x"), row("a")])
    assert marks == [Marks((0.0, 1.0, 0.5)), Marks((0.5, 0.5)), Marks((0.5, 0.5), True), None, Marks((0.0,))]


def made(rows, rule: str, **choice) -> Labelled:
    return label(rows, ByRule(find_rule(rule)), Choice(**choice))


def test_pairs_are_best_against_worst_and_ties_are_counted():
    found = made([row("aaa", "a", "aa"), row("b", "c")], "shorter")
    assert found.ties == 1
    (record,) = found.records
    assert record["chosen"] == [{"role": "assistant", "content": "a"}]
    assert record["rejected"] == [{"role": "assistant", "content": "aaa"}]
    assert (record["score_chosen"], record["score_rejected"]) == (-1.0, -3.0)
    assert "reference" not in record
    assert (found.mean_mark, found.best_mark, found.longer) == (-1.5, -1.0, 0.0)
    assert made([row("aaa", "a")], "shorter", min_margin=3).left_out == {"too close": 1}
    assert len(made([row("aaa", "a")], "shorter", min_margin=2).records) == 1


def test_empty_answers_are_not_used_and_unfinished_ones_are_the_worst_or_left_out():
    rows = [row("a", "", "aaa", finished=(True, True, False)), row("aa", "a", "aaaa", finished=(True, True, False))]
    worst = made([*rows, row("a", "b", finished=(False, False))], "longer", to="rankings")
    assert [record["scores"] for record in worst.records] == [[1.0, 0.0], [2.0, 1.0, 0.0]]
    assert [turns[0]["content"] for turns in worst.records[1]["answers"]] == ["aa", "a", "aaaa"]
    assert (worst.unfinished, worst.dropped, worst.left_out) == (2, {"empty": 1}, {"too few finished answers": 1})
    assert (worst.mean_mark, worst.best_mark) == (1.25, 1.5)
    cut = made(rows, "longer", to="sft")
    assert [record["completion"][0]["content"] for record in cut.records] == ["a", "aa"]
    judged = made(rows, "lacks:x", to="feedback")
    assert [record["label"] for record in judged.records] == [True, False, True, True, False]
    found = made(rows, "shorter", unfinished="drop")
    assert found.dropped == {"empty": 1, "unfinished": 2}
    assert found.left_out == {"too few finished answers": 1}
    assert found.records[0]["rejected"][0]["content"] == "aa"
    kept = made(rows, "shorter", unfinished="keep")
    assert [record["rejected"][0]["content"] for record in kept.records] == ["aaa", "aaaa"]


def test_every_target_is_read_as_its_kind_and_keeps_the_scores(tmp_path):
    rows = [row("aaa", "a", "aa"), row("bb", "b", prompt=Prompt("Say", "a.jsonl", 2))]
    read = {}
    for to, kind in (("pairs", "pair"), ("rankings", "ranking"), ("feedback", "feedback"), ("sft", "sequence")):
        path = tmp_path / f"{to}.jsonl"
        write_records(made(rows, "shorter", to=to), path, "a.jsonl")
        read[to] = list(read_entries(SourceConfig(path=str(path)), kind=kind))
    pair, plain = read["pairs"]
    assert isinstance(pair, Pair)
    assert pair.prompt == CHAT.turns
    assert pair.margin == 2.0
    assert (plain.prompt, plain.chosen, plain.rejected) == ("Say", "b", "bb")
    ranking = read["rankings"][0]
    assert isinstance(ranking, Ranking)
    assert [turns[0].content for turns in ranking.answers] == ["a", "aa", "aaa"]
    assert ranking.scores == (-1.0, -2.0, -3.0)
    assert [(entry.answer, entry.good) for entry in read["feedback"] if isinstance(entry, Feedback)][2:] == [
        ("b", True),
        ("bb", False),
    ]
    assert [message.content for message in read["sft"][0].messages] == ["Say it", "a"]
    assert [message.weight for message in read["sft"][0].messages] == [0.0, None]
    assert DataConfig().train_on == "all_assistant"


def test_the_pass_mark_parts_good_from_bad():
    rows = [row("42", "41", "40"), row("1", "2"), row("42", "42")]
    best = made(rows, "exact", to="sft")
    assert [record["completion"][0]["content"] for record in best.records] == ["42", "42"]
    assert best.left_out == {"no good answer": 1}
    judged = made(rows, "exact", to="feedback")
    assert [record["label"] for record in judged.records] == [True, False, False, False, False, True, True]
    assert made(rows, "exact").ties == 2
    strict = made([row("a", "aa")], "shorter", to="sft", threshold=-0.5)
    assert strict.left_out == {"no good answer": 1}
    assert made([row("aa", "a")], "shorter", to="sft").records[0]["completion"][0]["content"] == "a"


def test_answers_that_are_all_bad_teach_only_feedback():
    labeller = ByComparison(Alphabet())
    assert label([row("#1", "#2")], labeller, Choice()).left_out == {"all bad": 1}
    assert label([row("#1", "#2")], labeller, Choice(to="sft")).left_out == {"no good answer": 1}
    judged = label([row("#1", "#2")], labeller, Choice(to="feedback"))
    assert [record["label"] for record in judged.records] == [False, False]


def test_what_nobody_looked_at_is_left_out():
    assert label([row("open", "x")], ByComparison(Alphabet()), Choice()).left_out == {"not looked at": 1}


def test_nothing_is_an_error_with_reasons_and_writes_no_file(tmp_path):
    found = made([row("a", "b"), row("c", "d", finished=(False, True))], "shorter", unfinished="drop")
    with pytest.raises(DataError, match="E264") as caught:
        write_records(found, tmp_path / "pairs.jsonl", "a.jsonl")
    assert caught.value.diagnostic.evidence == ("1: a tie", "1: too few finished answers", "1: unfinished answers")
    assert "max_new_tokens" in str(caught.value.diagnostic)
    assert made([row("a", "")], "shorter").left_out == {"too few answers": 1}
    assert not (tmp_path / "pairs.jsonl").exists()


def test_pairs_and_rankings_can_be_marked_again(tmp_path: Path):
    path = tmp_path / "old.jsonl"
    path.write_text(json.dumps({"prompt": "Say", "chosen": "long", "rejected": "s"}) + "\n")
    (found,) = read_answers(str(path))
    assert found.answers == ("long", "s")
    path.write_text(json.dumps({"prompt": "Say", "completions": ["x", "y", "z"]}) + "\n")
    assert read_answers(str(path))[0].answers == ("x", "y", "z")
    path.write_text(json.dumps({"prompt": "Say", "completion": "x"}) + "\n")
    with pytest.raises(DataError, match="E263"):
        read_answers(str(path))
    path.write_text(json.dumps({"prompt": "Say", "answers": ["x", "y"], "finished": [True]}) + "\n")
    with pytest.raises(DataError, match="finished"):
        read_answers(str(path))


def test_exactly_one_labeller(tmp_path):
    with pytest.raises(UsageError, match="E270"):
        check_choice(LabelConfig())
    with pytest.raises(UsageError, match="both set"):
        check_choice(LabelConfig(reward="m", rule="json"))
    with open_labeller(LabelConfig(rule="json"), tmp_path / "votes") as labeller:
        assert labeller.pass_mark == 0.5
    assert not (tmp_path / "votes").exists()
