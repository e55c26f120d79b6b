"""`label` as a user meets it: options, the file it leaves, and a person at a terminal."""

import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from tests.command import call

from tunesmith.cli.label import question_view
from tunesmith.evaluate.labellers import Question
from tunesmith.evaluate.person import Shown
from tunesmith.rollout.prompts import Prompt

ASKED = [[{"role": "user", "content": f"Question {at}"}] for at in range(3)]
ROWS = [{"prompt": turns, "answers": [f"long answer {at}", "short"]} for at, turns in enumerate(ASKED)]


@pytest.fixture(autouse=True)
def answers(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return path


def records(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def test_a_rule_makes_pairs(capsys):
    assert call("label", "answers.jsonl", "-o", "pairs.jsonl", "--rule", "shorter", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["records"], told["prompts"], told["ties"], told["longer"]) == (3, 3, 0, 0.0)
    assert records("pairs.jsonl")[0]["chosen"] == [{"role": "assistant", "content": "short"}]
    assert call("label", "answers.jsonl", "-o", "pairs.jsonl", "--rule", "longer") == 0
    assert "3 records from 3 prompts" in capsys.readouterr().out


def test_only_what_labelling_wrote_is_replaced(answers, capsys):
    before = answers.read_bytes()
    assert call("label", "answers.jsonl", "-o", "answers.jsonl", "--rule", "shorter") == 2
    assert "E272" in capsys.readouterr().err
    assert answers.read_bytes() == before
    for rule in ("shorter", "longer"):
        assert call("label", "answers.jsonl", "-o", "pairs.jsonl", "--rule", rule) == 0
    about = json.loads(Path("pairs.jsonl.label.json").read_text("utf-8"))
    assert (about["labeller"]["rule"], about["choice"]["to"], about["found"]["records"]) == ("longer", "pairs", 3)


def test_wrong_options_are_told(capsys):
    assert call("label", "answers.jsonl", "-o", "p.jsonl") == 2
    assert "E270" in capsys.readouterr().err
    assert call("label", "answers.jsonl", "-o", "p.jsonl", "--rule", "json", "--reward", "x") == 2
    assert call("label", "answers.jsonl", "-o", "p.jsonl", "--judge", "http://127.0.0.1:9") == 2
    assert "--judge-model" in capsys.readouterr().err
    assert call("label", "answers.jsonl", "-o", "p.jsonl", "--judge", "h", "--judge-model", "m") == 2
    assert "E266" in capsys.readouterr().err
    assert call("label", "answers.jsonl", "-o", "p.jsonl", "--rule", "json", "--to", "pair") == 2
    assert "did you mean pairs" in capsys.readouterr().err
    assert call("label", "answers.jsonl", "-o", "p.jsonl", "--person") == 2
    assert "E268" in capsys.readouterr().err
    assert call("label", "answers.jsonl", "-o", "p.jsonl", "--rule", "json") == 4
    assert "3: a tie" in capsys.readouterr().err
    assert not Path("p.jsonl").exists()


def sit(folder: Path, keys: str) -> tuple[int, str]:
    """Run `label --person` at a pseudo-terminal, pressing a key whenever it asks."""
    master, slave = pty.openpty()
    words = ["label", "answers.jsonl", "-o", "voted.jsonl", "--person", "--seed", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tunesmith", *words],
        cwd=folder, stdin=slave, stdout=subprocess.PIPE, stderr=slave, env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    os.close(slave)
    screen, asked = b"", 0
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if not select.select([master], [], [], 0.2)[0]:
            continue
        try:
            screen += os.read(master, 65_536)
        except OSError:
            break
        while asked < min(screen.count(b"q: quit"), len(keys)):
            os.write(master, keys[asked].encode())
            asked += 1
    if time.monotonic() > deadline:
        process.kill()
    code = process.wait(timeout=30)
    os.close(master)
    return code, screen.decode("utf-8", "replace")


def test_a_person_votes_blind_at_a_terminal_and_goes_on_later(answers, tmp_path):
    code, screen = sit(tmp_path, "1q")
    assert code == 0, screen
    assert "1 of 3" in screen
    assert "Question 0" in screen
    assert "answers.jsonl" not in screen
    (first,) = records("voted.jsonl")
    votes = records("voted.jsonl.votes.jsonl")
    assert len(votes) == 1
    assert first["chosen"][0]["content"] == ("short" if votes[0]["turned"] else "long answer 0")
    code, screen = sit(tmp_path, "t2")
    assert code == 0, screen
    assert "2 of 3" in screen
    assert "1 of 3" not in screen
    assert len(records("voted.jsonl")) == 2
    assert len(records("voted.jsonl.votes.jsonl")) == 3


def test_control_characters_of_an_answer_do_not_reach_the_terminal():
    question = Question(Prompt("ask\x07", "a", 1), "\x1b[2Jgone\n[bold]", "fine")
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=60)
    for part in question_view(Shown(1, 1, question, question.first, question.second)):
        console.print(part)
    assert "\x1b[2J" not in screen.getvalue()
    assert "\x07" not in screen.getvalue()
    assert "gone" in screen.getvalue()
    assert "[bold]" in screen.getvalue()
