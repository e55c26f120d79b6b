"""`tunesmith recipes` and `tunesmith init`: the recipes that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.options import AsJson
from tunesmith.cli.output import answer, console, emit_json
from tunesmith.configuring.shipped import shipped, summary
from tunesmith.errors import Fix, UsageError, Where, nearest

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a shipped recipe.", show_default=False)]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="List, show and copy the shipped recipes.", invoke_without_command=True)
    group.callback()(list_recipes)
    group.command("show")(show_recipe)
    group.command("copy")(copy_recipe)
    app.add_typer(group, name="recipes")
    app.command("init")(init)


def list_recipes(context: typer.Context, as_json: AsJson = False) -> None:
    """List, show and copy the shipped recipes."""
    if context.invoked_subcommand is not None:
        return
    found = {name: summary(path) for name, path in shipped().items()}
    if as_json:
        emit_json({"recipes": [{"name": name, "about": about} for name, about in found.items()]})
        return
    width = max(len(name) for name in found)
    answer("\n".join(f"[bold cyan]{name:<{width}}[/bold cyan]  {about}" for name, about in found.items()))
    console().print("\n[dim]tunesmith recipes show NAME · tunesmith init --from NAME · tunesmith train NAME[/dim]")


def show_recipe(name: Name) -> None:
    """Print a recipe."""
    typer.echo(_find(name).read_text(encoding="utf-8"), nl=False)


def copy_recipe(
    name: Name, file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to.", show_default=False)]
) -> None:
    """Copy a recipe to a file of your own."""
    _write(name, file)


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The recipe to write.")] = Path("recipe.yaml"),
    source: Annotated[str, typer.Option("--from", metavar="NAME", help="The shipped recipe to begin with.")] = "sft",
) -> None:
    """Write a commented recipe to begin with."""
    _write(source, file)
    console().print(f"[dim]next:[/dim] tunesmith plan {file} data.train=FILE")


def _find(name: str) -> Path:
    known = shipped()
    if name in known:
        return known[name]
    like = nearest(name, known)
    fixes = [Fix(f"did you mean {like}?", command=f"tunesmith recipes show {like}")] if like else []
    message = f"there is no shipped recipe called {name}"
    raise UsageError("E021", message, where=Where("command line"), evidence=["known: " + ", ".join(known)], fixes=fixes)


def _write(name: str, file: Path) -> None:
    text = _find(name).read_text(encoding="utf-8")
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        fix = "give another name, or delete the file first"
        raise UsageError("E022", f"{file} exists; nothing was written", where=Where(str(file)), fixes=[fix]) from error
    except OSError as error:
        raise UsageError("E022", f"{file} cannot be written: {error.strerror}", where=Where(str(file))) from error
    console().print(f"wrote [bold]{file}[/bold]")
