"""`tunesmith chat`: a conversation with a model, or with two that a person votes on without knowing which is which."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.chat_talk import Talk
from tunesmith.cli.model import Weights
from tunesmith.cli.options import AsJson, Products

if TYPE_CHECKING:
    from tunesmith.chat.settings import ChatSettings
    from tunesmith.chat.voice import Voice, Voices
    from tunesmith.cli.chat_screen import Screen
    from tunesmith.errors import UsageError

RULES = (
    "Two models answer every message; which is which is told at the end. The answer that you prefer goes on; after a "
    "tie or without a vote 1 does; after both bad your message is taken back."
)


def register(app: typer.Typer) -> None:
    app.command("chat")(chat)


def chat(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL [MODEL]", help="As for eval; of two you vote on the answers.", show_default=False
        ),
    ],
    prompt: Annotated[str | None, typer.Option("--prompt", help="Answer this once and leave.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message of the conversation.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="0 always takes the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option("--top-p", min=0.001, max=1, help="Mass of the tokens drawn from.")] = 0.95,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, max=131_072, help="Longest answer.")] = 512,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the draws, each with its own.")] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE of any setting of sampling; repeatable.")
    ] = None,
    votes: Annotated[Path, typer.Option("--votes", help="File of pairs that votes are added to.")] = Path(
        "preferences.jsonl"
    ),
    weights: Weights = "auto",
    products: Products = "packed",
    json: AsJson = False,
) -> None:
    """Talk to a model, or compare two blind; without a terminal every line of stdin is a message."""
    from tunesmith.chat.settings import ChatSettings
    from tunesmith.cli.chat_screen import Screen

    drawn = ChatSettings(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed)
    for assignment in settings or ():
        drawn = drawn.changed(assignment)
    check_models(models, once=prompt is not None)
    check_prompt(prompt)
    screen = Screen(as_json=json)
    with ExitStack() as stack:
        voices = open_shelf(models, weights, products, stack)
        if prompt is not None:
            for name in models:
                answer_once(voices.open(name), drawn, system, prompt, screen, named=len(models) > 1)
        elif len(models) == 1:
            talk_to_one(voices, models[0], drawn, system, screen)
        else:
            talk_to_two(voices, models, drawn, system, votes, screen)


def check_models(models: list[str], *, once: bool) -> None:
    """UsageError E480 for more than two models, or one twice."""
    twice = next((name for name in models if models.count(name) > 1), None)
    if twice is not None:
        raise not_two(f"{twice} is named twice", models)
    if len(models) > 2 and not once:
        raise not_two(f"a conversation has one or two models, not {len(models)}", models)


def check_prompt(prompt: str | None) -> None:
    """UsageError E020 for one that is there and says nothing."""
    from tunesmith.errors import UsageError, Where

    if prompt is not None and not prompt.strip():
        fixes = ['--prompt "What is a lighthouse?"', "leave --prompt out for a conversation"]
        raise UsageError("E020", "the prompt is empty", where=Where("command line", field="--prompt"), fixes=fixes)


def not_two(message: str, models: list[str]) -> UsageError:
    from tunesmith.errors import Fix, UsageError, Where

    fixes = [
        Fix("compare two", command=f"tunesmith chat {models[0]} OTHER"),
        Fix("or one, and /use MODEL in between", command=f"tunesmith chat {models[0]}"),
    ]
    return UsageError("E480", message, where=Where("command line", field="MODEL"), fixes=fixes)


def open_shelf(models: list[str], weights: str, products: str, stack: ExitStack) -> Voices:
    """UsageError E480 for two names of the same weights."""
    from tunesmith.chat.voice import Voices
    from tunesmith.cli.model import choose_products, choose_weights, tell_sources
    from tunesmith.cli.output import console
    from tunesmith.export.shelf import Shelf

    which, held = choose_weights(weights), choose_products(products)
    with console().status("looking for the models"):
        shelf = Shelf.of(models, which)
    tell_sources(shelf.sources, which)
    if (twice := shelf.twice()) is not None:
        raise not_two(f"{twice[1]} is {twice[0]} once more: two names of the same weights", models)
    return Voices(shelf, stack, held=held)


def answer_once(
    voice: Voice, settings: ChatSettings, system: str | None, text: str, screen: Screen, *, named: bool
) -> None:
    """One model's answer to the first message of a conversation of its own, below its name."""
    from tunesmith.chat.conversation import Conversation

    if named:
        screen.piece(f"{voice.name}: ")
    Talk(Conversation(settings, system), [voice], screen).say(text)


def talk_to_one(voices: Voices, name: str, settings: ChatSettings, system: str | None, screen: Screen) -> None:
    from tunesmith.chat.conversation import Conversation
    from tunesmith.cli.chat_screen import history
    from tunesmith.cli.output import console

    with console().status(f"loading {name}"):
        voices.open(name)
    talk = Talk(Conversation(settings, system), [voices.open(name)], screen, voices)  # which alone may hold the voice
    if screen.talks:
        screen.note(f"{talk.answering[0].source.told}\n/help lists what else can be said here. Ctrl-C stops an answer.")
    with history(screen):
        talk.run()


def talk_to_two(
    voices: Voices, names: list[str], settings: ChatSettings, system: str | None, path: Path, screen: Screen
) -> None:
    from tunesmith.chat.conversation import Conversation
    from tunesmith.chat.votes import Votes
    from tunesmith.cli.chat_screen import history
    from tunesmith.cli.output import console
    from tunesmith.export.identity import weights_identity

    with console().status("loading the models"):
        opened = [voices.open(name) for name in names]
        identities = {voice.name: weights_identity(voice.source) for voice in opened}
    with Votes(path, identities, settings.seed) as votes, history(screen):
        if screen.talks:
            screen.note(f"{RULES}\n/help lists what else can be said here.")
        Talk(Conversation(settings, system), opened, screen, votes=votes).run()
        screen.tally(votes.tally(), str(path))
