"""`chat` as a user meets it: a pipe, a terminal, commands, and two models compared blind."""

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
from tests.command import call
from tests.tiny import tiny_model_folder
from transformers import AutoModelForCausalLM

from tunesmith.chat.files import load
from tunesmith.chat.voice import Voice, Voices
from tunesmith.cli.chat_talk import Talk
from tunesmith.controls import visible
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.export.opening import open_model
from tunesmith.models.config import ModelConfig
from tunesmith.models.load import load_base
from tunesmith.models.native import decode
from tunesmith.rollout.generator import Sampling, generate
from tunesmith.types import Message

# Ctrl-C means something also where the tests run in the background, which ignores it
BEGIN = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from tunesmith.cli.main import run; run()"
)
GREEDY = ("--temperature", "0", "--max-new-tokens", "8")


def answer_to(name: str, *turns: Message) -> str:
    folder = Path(name)
    model, tokenizer = load_base(folder, ModelConfig(path=name)), load_tokenizer(folder)
    return generate(model, tokenizer, [tokenizer.prompt_ids(turns)], Sampling(8))[0].text


def test_one_prompt_prints_only_the_answer(models, capsys) -> None:
    assert call("chat", models[0], "--prompt", "Hello", *GREEDY) == 0
    first = answer_to(models[0], Message("user", "Hello"))
    assert capsys.readouterr().out == visible(first) + "\n"
    assert call("chat", *models, "--prompt", "Hello", *GREEDY) == 0
    other = answer_to(models[1], Message("user", "Hello"))
    assert capsys.readouterr().out == visible(f"{models[0]}: {first}\n{models[1]}: {other}\n")


def test_every_line_of_stdin_is_a_message(models, capsys, typed) -> None:
    typed("Hello", "", "Add 12 and 30", "/clear", "Hello", "/bye", "never")
    assert call("chat", models[0], "--system", "Be short.", *GREEDY) == 0
    system, hello = Message("system", "Be short."), Message("user", "Hello")
    first = answer_to(models[0], system, hello)
    turns = (system, hello, Message("assistant", first), Message("user", "Add 12 and 30"))
    second = answer_to(models[0], *turns)
    told = capsys.readouterr()
    assert told.out == visible(f"{first}\n{second}\n{first}\n")
    assert "\x1b" not in told.out + told.err
    assert second != answer_to(models[0], system, Message("user", "Add 12 and 30"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--prompt", " "), ("E020", "the prompt is empty", "leave --prompt out")),
        (("--prompt", "Hi", "--weights", "best"), ("E020", "alpha-model is none", "leave --weights out")),
        (("--prompt", "Hi", "--weights", "step-3"), ("E020", "--weights chooses among those of a run")),
    ],
)
def test_options_that_say_nothing_are_told(given, words, models, capsys) -> None:
    assert call("chat", models[0], *given) == 2
    told = capsys.readouterr().err
    for word in words:
        assert word in " ".join(told.split())


def test_where_nothing_can_be_written_or_found_is_told(models, capsys, typed) -> None:
    typed("Hello")
    assert call("chat", *models, "--votes", "/proc/none/x.jsonl") == 5
    told = capsys.readouterr().err
    assert "E194" in told
    assert "name a file in a folder that is there" in told
    assert call("chat", "last") == 4
    assert "there is none in this folder" in " ".join(capsys.readouterr().err.split())


def test_products_are_chosen_and_not_exact_in_8_bits(models, capsys, tmp_path) -> None:
    hello = ("--prompt", "Hello", *GREEDY, "--products")
    assert call("chat", models[0], *hello, "shared") == 0
    assert capsys.readouterr().out == visible(answer_to(models[0], Message("user", "Hello"))) + "\n"
    assert call("chat", models[0], *hello, "int8") == 4
    assert "E428" in capsys.readouterr().err  # the model is in fp32
    assert call("chat", models[0], *hello, "eight") == 2
    assert "such as --products packed" in capsys.readouterr().err
    half = shutil.copytree(models[0], tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(models[0], dtype=torch.bfloat16).save_pretrained(half)
    opened = open_model(str(half))
    if not decode.serves(torch.bfloat16):
        pytest.skip("no products of bf16 here")
    prompt = opened.tokenizer.prompt_ids([Message("user", "Hello")])
    made = generate(opened.model, opened.tokenizer, [prompt], Sampling(8), held="int8")[0].text
    assert call("chat", str(half), *hello, "int8") == 0
    assert capsys.readouterr().out == made + "\n"


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
    assert told.out == visible(f"{said}\n")
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
    assert shown.out == visible(f"{said}\n{again}\n")


def test_another_model_takes_the_place_of_the_one_before(models, capsys, typed, monkeypatch) -> None:
    make, living = Voices.make, list[weakref.ref]()

    def alone(self, name: str) -> Voice:
        assert [seen() for seen in living if seen() is not None] == []
        voice = make(self, name)
        living.append(weakref.ref(voice.activate()))
        return voice

    monkeypatch.setattr(Voices, "make", alone)
    typed("Hello", f"/use {models[1]}", "/clear", "Hello", f"/use {models[0]}", "/clear", "Hello")
    assert call("chat", models[0], *GREEDY) == 0
    first, second = (answer_to(name, Message("user", "Hello")) for name in models)
    assert capsys.readouterr().out == visible(f"{first}\n{second}\n{first}\n")
    assert len(living) == 3


def test_a_conversation_without_any_model_left_ends(models, capsys, typed, monkeypatch, tmp_path) -> None:
    first = tmp_path / "first"
    shutil.copytree(models[0], first)
    bad = tiny_model_folder(tmp_path / "damaged")
    (bad / "model.safetensors").write_bytes(b"no tensors")
    attempt = Talk.attempt

    def moved(self, line: str) -> None:
        self.screen.talks = True
        first.rename(tmp_path / "elsewhere")
        attempt(self, line)

    monkeypatch.setattr(Talk, "attempt", moved)
    typed(f"/use {bad}", "Hello")
    assert call("chat", str(first), *GREEDY) != 0
    told = capsys.readouterr()
    assert "error[" in told.err
    assert str(first) in told.err
    assert "bug" not in told.err


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
