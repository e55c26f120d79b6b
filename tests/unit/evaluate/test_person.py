from pathlib import Path

from tunesmith.evaluate.labellers import Question
from tunesmith.evaluate.person import Person, Shown
from tunesmith.rollout.journal import Journal
from tunesmith.rollout.prompts import Prompt

QUESTIONS = [Question(Prompt(f"Prompt {index}", "a", index), f"one {index}", f"two {index}") for index in range(6)]


class Sitting:
    """Keys that are typed, and what was shown before each."""

    def __init__(self, keys: str) -> None:
        self.keys = list(keys)
        self.shown: list[Shown] = []

    def read_key(self) -> str:
        return self.keys.pop(0) if self.keys else ""


def sit(folder: Path, keys: str, questions=QUESTIONS, seed: int = 0):
    sitting = Sitting(keys)
    with Journal(folder / "votes.jsonl") as votes:
        outcomes = Person(votes, sitting.read_key, sitting.shown.append, seed).compare(questions)
    return outcomes, sitting


def test_sides_are_drawn_by_seed_and_votes_are_for_the_answers(tmp_path):
    outcomes, sitting = sit(tmp_path, "111111")
    turned = [shown.one.startswith("two") for shown in sitting.shown]
    assert len(set(turned)) == 2
    assert outcomes == ["second" if each else "first" for each in turned]
    _, again = sit(tmp_path / "b", "2")
    assert again.shown[0] == sitting.shown[0]
    sides = {tuple(shown.one[:3] for shown in sit(tmp_path / str(s), "tttttt", seed=s)[1].shown) for s in range(3)}
    assert len(sides) == 3


def test_ties_both_bad_other_keys_and_numbers(tmp_path):
    outcomes, sitting = sit(tmp_path, "xT b?\x1b1q")
    assert outcomes[:2] == ["tie", "bad"]
    assert outcomes[2] in ("first", "second")
    assert outcomes[3:] == [None, None, None]
    assert [(shown.number, shown.total) for shown in sitting.shown] == [(1, 6), (2, 6), (3, 6), (4, 6)]


def test_undo_takes_the_last_vote_back_and_shows_the_question_as_before(tmp_path):
    outcomes, sitting = sit(tmp_path, "1tuu2b")
    assert sitting.shown[1] == sitting.shown[3]
    assert sitting.shown[0] == sitting.shown[4]
    first = "first" if sitting.shown[0].one.startswith("two") else "second"
    assert outcomes[:3] == [first, "bad", None]
    again, _ = sit(tmp_path, "u")
    assert again[:3] == [first, "bad", None]  # votes of an earlier sitting stand


def test_votes_are_on_disk_one_by_one_and_the_next_sitting_goes_on(tmp_path):
    counts: list[int] = []
    sitting = Sitting("tb1")

    def read_key() -> str:
        counts.append(len((tmp_path / "votes.jsonl").read_text().splitlines()))
        return sitting.read_key()

    with Journal(tmp_path / "votes.jsonl") as votes:
        Person(votes, read_key, sitting.shown.append).compare(QUESTIONS)
    assert counts == [0, 1, 2, 3]
    outcomes, later = sit(tmp_path, "ttt")
    assert outcomes[:2] == ["tie", "bad"]
    assert None not in outcomes
    assert later.shown[0].number == 4
    assert sit(tmp_path, "")[0] == outcomes
