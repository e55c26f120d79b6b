"""`tunesmith`: the verbs, assembled; a command's heavy imports happen inside it, so that help is instant."""

from __future__ import annotations

import os
import re
import sys
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from tunesmith import __version__
from tunesmith.cli.advice import fitting
from tunesmith.cli.output import crash, fail
from tunesmith.distributed.launched import launch_folder
from tunesmith.errors import TunesmithError, UsageError, Where, nearest
from tunesmith.faults import check_environment
from tunesmith.track.limits import limit_error

GROUPS = (
    "recipes",
    "config",
    "explain",
    "plan",
    "train",
    "lr_find",
    "compare",
    "quickstart",
    "data",
    "runs",
    "chat",
    "evaluate",
    "merging",
    "export",
    "adapters",
    "score",
    "sample",
    "label",
    "serve",
    "doctor",
)
SPARE = 16 << 20  # bytes of addresses, none of them touched
PANELS: dict[str, tuple[str, ...]] = {
    "Start": ("quickstart", "init", "recipes", "doctor"),
    "Train": ("data", "plan", "lr-find", "train", "compare"),
    "Look": ("runs", "config", "explain"),
    "Use": ("chat", "serve", "sample", "label", "eval", "score", "merge", "average", "export", "adapters"),
}
EPILOG = """[bold]Examples[/bold]

  [cyan]tunesmith quickstart[/cyan]                       [dim]before and after, in minutes[/dim]

  [cyan]tunesmith plan sft data.train=chats.jsonl[/cyan]  [dim]memory, time, steps[/dim]

  [cyan]tunesmith train sft data.train=chats.jsonl[/cyan] [dim]LoRA on your own data[/dim]

  [cyan]tunesmith chat runs/NAME[/cyan]                   [dim]talk to the result[/dim]
"""


class _Ordered(TyperGroup):
    """Commands in the order of PANELS, whoever registered them."""

    def list_commands(self, ctx: Any) -> list[str]:
        order = [name for names in PANELS.values() for name in names]
        return sorted(super().list_commands(ctx), key=order.index)


def build() -> typer.Typer:
    """The application with every command group that is present."""
    app = typer.Typer(
        help="From raw text to an aligned, exported language model.",
        epilog=EPILOG,
        cls=_Ordered,
        invoke_without_command=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for group in GROUPS:
        name = f"tunesmith.cli.{group}"
        if find_spec(name) is not None:
            import_module(name).register(app)
    _arrange(app)
    return app


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """From raw text to an aligned, exported language model."""
    if version:
        sys.stdout.write(f"{__version__}\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _arrange(app: typer.Typer) -> None:
    """Give every command its panel."""
    panel_of = {name: panel for panel, names in PANELS.items() for name in names}
    for command in app.registered_commands:
        command.name = command.name or (command.callback.__name__ if command.callback else "")
        command.rich_help_panel = panel_of[command.name]
    for group in app.registered_groups:
        group.rich_help_panel = panel_of[str(group.name)]


def run(argv: list[str] | None = None) -> None:
    """Run one command and leave with its exit code; every failure becomes a diagnostic."""
    words = sys.argv[1:] if argv is None else argv
    as_json = "--json" in words
    spare = bytearray(SPARE)
    try:
        if words[:1] != ["explain"]:  # which tells what is wrong with it
            check_environment()
        code = build()(args=words, prog_name="tunesmith", standalone_mode=False)
    except TunesmithError as error:
        code = fail(fitting(error, words), as_json=as_json)
    except typer.TyperException as error:  # without a message it is a group's help, already printed
        code = fail(_usage(error, words), as_json=as_json) if error.format_message() else 2
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except Exception as error:
        del spare  # what is told needs some memory, where none may be left
        limited = limit_error(error)
        code = crash(error, as_json=as_json) if limited is None else fail(limited, as_json=as_json)
    leave(code if isinstance(code, int) else 0)


def leave(code: int) -> NoReturn:
    """End the process; a rank does not wait for the threads of a library that still talks to the others."""
    if launch_folder() is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _usage(error: typer.TyperException, words: list[str]) -> UsageError:
    """A wrong command or option in the form of every other error."""
    message = error.format_message()
    plain, *rest = re.split(r"[.?]? ?\(?(?:Did you mean|Possible options:?)", message)
    names = re.findall(r"[\w-]+", "".join(rest))
    plain = plain.rstrip(".")
    if isinstance(error, typer.BadParameter) and error.ctx:
        command = error.ctx.command_path
    else:
        begun = words[0] if words and words[0] in chain.from_iterable(PANELS.values()) else ""
        command = f"tunesmith {begun}".rstrip()
    near = nearest(plain.split()[-1].strip("'"), names) or next(iter(names), None)
    fixes = [f"did you mean {near}?"] if near else [f"{command} --help"]
    return UsageError("E020", plain[:1].lower() + plain[1:], where=Where("command line"), fixes=fixes)
