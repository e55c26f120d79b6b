"""`tunesmith chat`: a model or a run, talked to; and what other commands share that open one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from tunesmith.data.tokenizer import Tokenizer
    from tunesmith.export.opening import Opened, Wants, Which
    from tunesmith.export.shelf import Shelf
    from tunesmith.rollout.generator import Sampling
    from tunesmith.types import Message

WEIGHTS = ("auto", "final", "best", "newest")
HELP = "[dim]/reset forgets the conversation, /use NAME goes to another model, /exit leaves. Ctrl-C stops.[/dim]"

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A run, a model or adapter folder, a .gguf file, starter, a hub id.", show_default=False
    ),
]
Weights = Annotated[
    str, typer.Option("--weights", help="Weights of a run: final, best, newest; auto is final, else newest.")
]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer in tokens.")]


def register(app: typer.Typer) -> None:
    app.command("chat")(chat)


def chat(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="As for eval; of several the first begins.", show_default=False),
    ],
    prompt: Annotated[str | None, typer.Option("--prompt", help="Answer this once and leave.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message of the conversation.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="0 always takes the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option("--top-p", min=0.001, max=1, help="Mass of the tokens drawn from.")] = 0.95,
    max_new_tokens: MaxNewTokens = 512,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws; every turn has its own.")] = 0,
    weights: Weights = "auto",
) -> None:
    """Talk to a model, or to several in turn (/use NAME); without a terminal every line of stdin is a turn."""
    from tunesmith.rollout.generator import Sampling

    shelf = shelf_of(models, weights)
    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    talk = Conversation(shelf.open(models[0]), sampling, system)
    if prompt is not None:
        for name in models:
            talk.answer_alone(prompt, shelf.open(name), name if len(models) > 1 else None)
        return
    for line in lines_of_stdin(talk.opened.source.told):
        if line == "/exit":
            return
        if line == "/reset":
            talk.reset()
        elif line.startswith("/use "):
            talk.try_to_use(shelf, line.removeprefix("/use ").strip())
        elif line:
            talk.try_to_say(line)


class Conversation:
    """The turns so far; every answer is written to stdout while it is made."""

    def __init__(self, opened: Opened, sampling: Sampling, system: str | None) -> None:
        self.opened = opened
        self.sampling = sampling
        self.system = system
        self.messages: list[Message] = []
        self.reset()

    def reset(self) -> None:
        from tunesmith.types import Message

        self.messages = [Message("system", self.system)] if self.system is not None else []

    def say(self, text: str) -> None:
        """Answer one turn; Ctrl-C keeps what was said so far."""
        from dataclasses import replace

        from tunesmith.rollout.generator import stream
        from tunesmith.types import Message

        asked = [*self.messages, Message("user", text)]
        tokenizer: Tokenizer = self.opened.tokenizer
        sampling = replace(self.sampling, seed=self.sampling.seed + len(asked))
        said: list[str] = []
        with suppress(KeyboardInterrupt):
            for piece in stream(self.opened.model, tokenizer, tokenizer.prompt_ids(asked), sampling):
                said.append(piece)
                sys.stdout.write(piece)
                sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()
        self.messages = [*asked, Message("assistant", "".join(said))]

    def answer_alone(self, text: str, opened: Opened, name: str | None) -> None:
        """One model's answer to the first turn of a conversation of its own, below its name."""
        if name is not None:
            sys.stdout.write(f"{name}: ")
        self.opened = opened
        self.reset()
        self.say(text)

    def try_to_use(self, shelf: Shelf, name: str) -> None:
        """Go on with another model of those that were named; the conversation stays."""

        def change() -> None:
            self.opened = shelf.open(name)

        self.attempt(change)

    def try_to_say(self, text: str) -> None:
        """As `say`, but a turn that fails is told and forgotten, so that the conversation can go on."""
        self.attempt(lambda: self.say(text))

    def attempt(self, action: Callable[[], None]) -> None:
        from tunesmith.cli.output import show
        from tunesmith.errors import TunesmithError

        try:
            action()
        except TunesmithError as error:
            if not sys.stdin.isatty():
                raise
            show(error.diagnostic)


def lines_of_stdin(told: str) -> Iterator[str]:
    """Lines typed at a prompt, or those of a pipe or file; ends at the end of input and at Ctrl-C."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    from tunesmith.cli.output import console

    terminal = console()
    terminal.print(f"[bold]{told}[/bold]\n{HELP}")
    while True:
        try:
            yield input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            terminal.print()
            return


def open_for_use(model: str, weights: str, wants: Wants = "text") -> Opened:
    from tunesmith.cli.output import console
    from tunesmith.export.opening import open_model

    which = choose_weights(weights)
    with console().status(f"loading {model}"):
        return open_model(model, which=which, wants=wants)


def shelf_of(names: list[str], weights: str) -> Shelf:
    from tunesmith.cli.output import console
    from tunesmith.export.shelf import Shelf

    which = choose_weights(weights)
    with console().status(f"loading {names[0]}"):
        return Shelf.of(names, which)


def choose_weights(word: str) -> Which:
    return cast("Which", check_words([word], WEIGHTS, "--weights")[0])


def shape_names() -> tuple[str, ...]:
    from typing import get_args

    from tunesmith.data.config import Shape

    return get_args(Shape)


def split_words(listed: list[str] | None) -> list[str]:
    return [word.strip() for entry in listed or [] for word in entry.split(",") if word.strip()]


def check_words(words: list[str], known: tuple[str, ...], option: str) -> list[str]:
    """The words without repetitions; UsageError E020 names the nearest known one."""
    from tunesmith.errors import UsageError, Where, nearest

    for word in words:
        if word not in known:
            close = nearest(word, known)
            fixes = [f"did you mean {close}?"] if close else []
            raise UsageError(
                "E020",
                f"{option} does not know {word!r}",
                where=Where("command line", field=option),
                evidence=[f"known: {', '.join(known)}"],
                fixes=fixes,
            )
    return list(dict.fromkeys(words))
