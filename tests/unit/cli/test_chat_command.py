"""`chat` as a user meets it: a pipe, a terminal, commands, and two models compared blind."""

import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.command import call
from tests.tiny import tiny_model_folder

from tunesmith.chat.files import load
from tunesmith.cli import chat_screen
from tunesmith.cli.chat_screen import Screen, tally_lines
from tunesmith.cli.chat_talk import Talk
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.models.config import ModelConfig
from tunesmith.models.load import load_base
from tunesmith.rollout.generator import Sampling, generate
from tunesmith.types import Message

# Ctrl-C means something also where the tests run in the background, which ignores it
BEGIN = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from tunesmith.cli.main import run; run()"
)
GREEDY = ("--temperature", "0", "--max-new-tokens", "8")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[str, str]:
    """Two models whose names nobody could overlook."""
    place = tmp_path_factory.mktemp("models")
    settings = {"tie_word_embeddings": False, "initializer_range": 0.2}
    names = ("alpha-model", "beta-model")
    made = [tiny_model_folder(place / name, seed=at, **settings) for at, name in enumerate(names)]
    return str(made[0]), str(made[1])


@pytest.fixture
def typed(monkeypatch, tmp_path):
    """Sets the lines of stdin; the command runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *lines: monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def answer_to(name: str, *turns: Message) -> str:
    folder = Path(name)
    model, tokenizer = load_base(folder, ModelConfig(path=name)), load_tokenizer(folder)
    return generate(model, tokenizer, [tokenizer.prompt_ids(turns)], Sampling(8))[0].text


def test_one_prompt_prints_only_the_answer(models, capsys) -> None:
    assert call("chat", models[0], "--prompt", "Hello", *GREEDY) == 0
    first = answer_to(models[0], Message("user", "Hello"))
    assert capsys.readouterr().out == first + "\n"
    assert call("chat", *models, "--prompt", "Hello", *GREEDY) == 0
    other = answer_to(models[1], Message("user", "Hello"))
    assert capsys.readouterr().out == f"{models[0]}: {first}\n{models[1]}: {other}\n"


def test_every_line_of_stdin_is_a_message(models, capsys, typed) -> None:
    typed("Hello", "", "Add 12 and 30", "/clear", "Hello", "/bye", "never")
    assert call("chat", models[0], "--system", "Be short.", *GREEDY) == 0
    system, hello = Message("system", "Be short."), Message("user", "Hello")
    first = answer_to(models[0], system, hello)
    turns = (system, hello, Message("assistant", first), Message("user", "Add 12 and 30"))
    second = answer_to(models[0], *turns)
    told = capsys.readouterr()
    assert told.out == f"{first}\n{second}\n{first}\n"
    assert "\x1b" not in told.out + told.err
    assert second != answer_to(models[0], system, Message("user", "Add 12 and 30"))


def test_draws_repeat_with_the_seed_and_a_retry_is_another(models, capsys, typed) -> None:
    said = []
    for seed in ("1", "1", "2"):
        typed("Hello", "/retry")
        assert call("chat", models[0], "--set", "temperature=1.5", "--max-new-tokens", "12", "--seed", seed) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]
    typed("Hello", "/retry", "/save once.jsonl")
    call("chat", models[0], "--json", "--temperature", "1.5", "--max-new-tokens", "12")
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["answer"] != second["answer"]
    assert (first["schema"], first["message"], first["made"], first["reason"]) == (1, "Hello", 12, "length")
    assert [message.content for message in load(Path("once.jsonl")).messages] == ["Hello", second["answer"]]


def test_commands_change_the_conversation_and_the_file_is_training_data(models, capsys, typed) -> None:
    typed(
        "/system Be short.", "/set max_new_tokens=4", "/set", "Hello", "Bye", "/undo", "/save talk.jsonl", "/clear",
        "/load talk.jsonl", "//help is a word", "/save talk.jsonl", '"""one', 'two"""', f"/use {models[1]}", "Hi",
        "/save talk.jsonl", "/help", "/system", "/system none",
    )  # fmt: skip
    assert call("chat", models[0], *GREEDY) == 0
    err = capsys.readouterr().err
    notes = ("max_new_tokens is 4", "taken back: Bye", "added as conversation 1", "3 messages; your turn", "beta-model")
    for told in (*notes, "replaced conversation 1", "/retry", "Be short.", "the system message is gone"):
        assert told in err, told
    talk = load(Path("talk.jsonl")).messages
    asked = [message.content for message in talk if message.role == "user"]
    assert asked == ["Hello", "/help is a word", "one\ntwo", "Hi"]
    assert talk[-1].content == short(answer_to(models[1], *talk[:-1]), models[1])
    assert call("data", "check", "sft", "data.train=talk.jsonl", f"model.path={models[0]}") == 0


def test_a_loaded_conversation_that_ends_with_a_question_is_answered(models, capsys, typed) -> None:
    turns = (Message("user", "Hi"), Message("assistant", "Ho"), Message("user", "Hello"))
    rows = [{"role": turn.role, "content": turn.content} for turn in turns]
    Path("open.jsonl").write_text(json.dumps({"messages": rows}) + "\n")
    typed("/load open.jsonl", "/save done.jsonl", "/load done.jsonl")
    assert call("chat", models[0], *GREEDY) == 0
    told = capsys.readouterr()
    said = answer_to(models[0], *turns)
    assert told.out == f"{said}\n"
    assert "2 messages; the last question has no answer yet: Hello" in told.err
    assert "4 messages; your turn" in told.err
    assert load(Path("done.jsonl")).messages == (*turns, Message("assistant", said))


def short(text: str, name: str) -> str:
    """The first four tokens of an answer of eight."""
    tokenizer = load_tokenizer(Path(name))
    return tokenizer.decode(tokenizer.encode(text, specials=False)[:4], skip_special=True)


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("/exit", "E483", "did you mean /bye?"),
        ("/sistem x", "E483", "did you mean /system?"),
        ("/set temprature=1", "E481", "did you mean temperature?"),
        ("/save", "E483", "/save names no file"),
        ("/save x.jsonl", "E484", "no answer to save"),
        ("/load none.jsonl", "E041", "none.jsonl"),
    ],
)
def test_what_a_pipe_cannot_do_ends_it_with_the_fix(line: str, code: str, words: str, models, capsys, typed) -> None:
    typed(line, "Hello")
    assert call("chat", models[0], *GREEDY) in (2, 4)
    told = capsys.readouterr()
    assert f"error[{code}]" in told.err
    assert words in told.err
    assert told.out == ""


def test_models_that_cannot_be_compared_are_refused(models, capsys, typed) -> None:
    for names in ((*models, "third"), (models[0], models[0])):
        assert call("chat", *names) == 2
        assert "error[E480]" in capsys.readouterr().err
    Path("link").symlink_to(models[0])
    for other in ("link", os.path.relpath(models[0]), f"{models[0]}/."):
        assert call("chat", models[0], other) == 2
        told = capsys.readouterr().err
        assert "error[E480]" in told
        assert f"{other} is {models[0]} once more" in " ".join(told.split())
    assert call("chat", models[0], "link", "--prompt", "Hello") == 2


@pytest.mark.parametrize("given", [("--max-new-tokens", "131073"), ("--seed", str(2**63)), ("--top-p", "2")])
def test_settings_out_of_range_are_refused_by_name(given, models, capsys) -> None:
    assert call("chat", models[0], "--prompt", "Hello", *given) == 2
    told = capsys.readouterr().err
    assert "E020" in told
    assert given[0] in told


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


def test_a_conversation_goes_on_after_a_model_that_cannot_be_used(models, capsys, typed, monkeypatch, tmp_path) -> None:
    bad = tiny_model_folder(tmp_path / "damaged")
    (bad / "model.safetensors").write_bytes(b"no tensors")
    typed("Hello", f"/use {bad}", "Hello")
    attempt = Talk.attempt

    def told(self, line: str) -> None:
        self.screen.talks = line.startswith("/use")
        attempt(self, line)
        self.screen.talks = False

    monkeypatch.setattr(Talk, "attempt", told)
    assert call("chat", models[0], *GREEDY) == 0
    shown = capsys.readouterr()
    assert "damaged" in shown.err
    said = answer_to(models[0], Message("user", "Hello"))
    again = answer_to(models[0], Message("user", "Hello"), Message("assistant", said), Message("user", "Hello"))
    assert shown.out == f"{said}\n{again}\n"


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


class Terminal:
    """`chat` at a pseudo-terminal; what is typed is sent when a text stands on the screen."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.master, slave = pty.openpty()
        environment = {**os.environ, "COLUMNS": "80", "TUNESMITH_HOME": str(folder / "home")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", BEGIN, "chat", *words],
            cwd=folder, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.screen, self.deadline = "", time.monotonic() + 240

    def wait(self, text: str, after: int = 0) -> int:
        while text not in self.screen[after:]:
            assert time.monotonic() < self.deadline, self.screen
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.screen += os.read(self.master, 65_536).decode("utf-8", "replace")
                except OSError as error:
                    raise AssertionError(f"it ended: {self.screen}") from error
        return self.screen.index(text, after) + len(text)

    def type(self, line: str) -> None:
        os.write(self.master, f"{line}\r".encode())

    def close(self) -> int:
        if self.process.poll() is None and time.monotonic() > self.deadline:
            self.process.kill()
        code = self.process.wait(timeout=30)
        os.close(self.master)
        return code


def test_ctrl_c_stops_an_answer_and_keeps_the_conversation(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "model", max_position_embeddings=200_000, initializer_range=0.2)
    (letter,) = load_tokenizer(folder).encode("z", specials=False)
    endless = ("--set", f"bias={{{letter}: 100}}", "--max-new-tokens", "100000")
    terminal = Terminal(tmp_path, str(folder), *endless)
    at = terminal.wait("> ")
    terminal.type("Hello")
    terminal.wait("zzzz", at)
    os.kill(terminal.process.pid, signal.SIGINT)
    at = terminal.wait("first token after", at)
    at = terminal.wait("> ", at)
    terminal.type("/nonsense")
    at = terminal.wait("E483", at)  # told, and the conversation goes on
    at = terminal.wait("> ", at)
    terminal.type("/save talk.jsonl")
    at = terminal.wait("added as conversation 1", at)
    terminal.wait("> ", at)
    terminal.type("/bye")
    assert terminal.close() == 0, terminal.screen
    talk = load(tmp_path / "talk.jsonl").messages
    assert [message.role for message in talk] == ["user", "assistant"]
    assert set(talk[1].content) == {"z"}
    history = tmp_path / "home" / "chat-history"
    assert "Hello" in history.read_text("utf-8")
    assert history.stat().st_mode & 0o077 == 0
