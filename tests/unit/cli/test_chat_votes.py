"""`chat` with two models: votes from a pipe, what is kept of them, and how answers stand side by side."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from tests.command import call

from tunesmith.cli import chat_screen
from tunesmith.cli.chat_screen import Screen, tally_lines
from tunesmith.cli.chat_talk import Talk

GREEDY = ("--temperature", "0", "--max-new-tokens", "8")


def test_votes_are_blind_and_kept_and_dpo_trains_on_them(models, capsys, typed) -> None:
    words = ("chat", *models, "--max-new-tokens", "8", "--temperature", "1", "--seed", "5")
    typed("Hello", "1", "How are you?", "2", "And you?", "tie", "No", "both bad", "Yes", "", "Well", "/undo", "So", "1")
    assert call(*words) == 0
    told = capsys.readouterr()
    for name in ("alpha", "beta"):
        assert name not in told.err
        assert told.out.index(name) >= told.out.index(models[0])  # both names stand in the last lines alone
    assert told.out.count("[1]\n") == told.out.count("[2]\n") == 7
    assert models[0] in told.out.splitlines()[-3]
    assert "95 % interval" in told.out
    assert "of 5 votes" in told.out
    rows = [json.loads(line) for line in Path("preferences.jsonl").read_text().splitlines()]
    assert [row["prompt"][-1]["content"] for row in rows] == ["Hello", "How are you?", "So"]
    assert rows[1]["prompt"][1] == rows[0]["chosen"][0]  # what was preferred goes on
    asked = [turn["content"] for turn in rows[2]["prompt"] if turn["role"] == "user"]
    assert asked == ["Hello", "How are you?", "And you?", "Yes", "So"]  # neither the bad one nor the one taken back
    ties = [json.loads(line) for line in Path("preferences.ties.jsonl").read_text().splitlines()]
    assert [row["vote"]["said"] for row in ties] == ["tie", "bad"]
    typed("Hello", "2")
    assert call(*words, "--json") == 0
    duel, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert len(duel["answers"]) == 2
    assert (last["tally"]["earlier"], last["tally"]["preferred"]["n"]) == (5, 6)
    assert len(Path("preferences.jsonl").read_text().splitlines()) == 4
    settings = ("data.train=preferences.jsonl", f"model.path={models[0]}", "train.steps=2", "run.name=voted")
    assert call("train", "dpo", *settings, "--yes", "--json") == 0
    metrics = [json.loads(line) for line in Path("runs/voted/metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in metrics if "train/loss" in row]
    assert len(losses) == 2
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[1] < losses[0]


def test_a_wrong_vote_ends_a_pipe_and_what_was_voted_stays(models, capsys, typed) -> None:
    typed("Hello", "1", "Hello", "left")
    assert call("chat", *models, "--max-new-tokens", "8", "--votes", "v.jsonl") == 2
    told = capsys.readouterr()
    assert "'left' is no vote" in told.err
    assert "model" not in told.out
    assert len(Path("v.jsonl").read_text().splitlines()) == 1


def test_a_pipe_has_a_vote_for_every_message_also_of_equal_answers(models, capsys, typed, tmp_path) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(models[0], twin)
    typed("Hello", "1", "And you?", "", "Why?", "tie", "Well?")
    assert call("chat", models[0], str(twin), *GREEDY, "--json") == 0
    told = capsys.readouterr()
    *duels, last = (json.loads(line) for line in told.out.splitlines())
    assert [duel["message"] for duel in duels] == ["Hello", "And you?", "Why?", "Well?"]
    assert all(duel["answers"][0] == duel["answers"][1] for duel in duels)
    assert last["tally"]["preferred"] is None
    assert told.err.count("nothing to vote on") == 4
    assert not Path("preferences.jsonl").exists()
    typed("Hello", "neither")
    assert call("chat", models[0], str(twin), *GREEDY) == 2
    assert "'neither' is no vote" in capsys.readouterr().err


def test_every_undone_answer_takes_its_vote_with_it(models, capsys, typed) -> None:
    words = ("chat", *models, "--max-new-tokens", "8", "--temperature", "1")
    typed("Hello", "1", "And you?", "2", "Why?", "tie", "/undo", "/undo", "Well?", "1", "/clear", "/undo")
    assert call(*words) == 0
    assert capsys.readouterr().err.count("the vote is taken back too") == 2
    rows = [json.loads(line) for line in Path("preferences.jsonl").read_text().splitlines()]
    assert [row["prompt"][-1]["content"] for row in rows] == ["Hello", "Well?"]
    assert not Path("preferences.ties.jsonl").exists()


def test_a_comparison_that_is_stopped_leaves_the_vote_before_it_to_be_taken_back(models, typed, monkeypatch) -> None:
    typed("Hello", "1", "Stop here", "/undo")
    listen = Talk.listen

    def stopping(self, voice, turn, hear) -> None:
        if turn.text == "Stop here":
            raise KeyboardInterrupt
        listen(self, voice, turn, hear)

    monkeypatch.setattr(Talk, "listen", stopping)
    monkeypatch.setattr(Screen, "line", lambda self, prompt: sys.stdin.readline().strip() or None)
    made = Screen.__init__

    def typing(self, **how) -> None:
        made(self, **how)
        self.talks = True

    monkeypatch.setattr(Screen, "__init__", typing)
    assert call("chat", *models, "--max-new-tokens", "8", "--temperature", "1") == 0
    assert not Path("preferences.jsonl").exists()  # the message is gone, and the vote on it


def test_two_answers_stand_side_by_side_where_there_is_room(monkeypatch) -> None:
    def drawn(width: int) -> list[str]:
        screen = io.StringIO()
        monkeypatch.setattr(sys, "stdout", screen)
        monkeypatch.setenv("COLUMNS", str(width))
        view = Screen()
        view.paints = True
        view.duel("left \x1b[2J answer", "right " + "x" * 300)
        assert "\x1b[2J" not in screen.getvalue()
        assert screen.getvalue().count("x") == 300  # a word without end is broken, not cut
        return screen.getvalue().splitlines()

    assert any("left" in line and "right" in line for line in drawn(chat_screen.WIDE))
    assert not any("left" in line and "right" in line for line in drawn(chat_screen.WIDE - 1))


def test_the_tally_of_no_votes_names_the_models() -> None:
    from tunesmith.chat.votes import Tally

    assert tally_lines(Tally(("a", "b"), (0, 0), 0, 0, 0), "p") == ["no votes; the models were a and b"]
    assert len(tally_lines(Tally(("a", "b"), (0, 0), 2, 0, 1), "p")) == 2
    assert "1 of them from before" in tally_lines(Tally(("a", "b"), (3, 1), 0, 0, 1), "p")[1]
