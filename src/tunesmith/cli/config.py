"""`tunesmith config`: values with their origin, the schema, the text of a key."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tunesmith.cli.options import AsJson, Overrides, RecipeName
from tunesmith.cli.output import answer, emit_json, show
from tunesmith.configuring.aliases import ALIASES, normal
from tunesmith.configuring.catalogue import Setting, catalogue, plain, stored_schema
from tunesmith.errors import UsageError, Where, nearest


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Values with their origin, the schema, the text of a key.", no_args_is_help=True)
    group.command("show")(show_config)
    group.command("schema")(schema)
    group.command("docs")(docs)
    app.add_typer(group, name="config")


def show_config(
    recipe: RecipeName,
    overrides: Overrides = None,
    changed: Annotated[bool, typer.Option("--changed", help="Leave out the defaults.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print every setting of a recipe with its value and where that came from."""
    from rich.table import Table

    from tunesmith.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    rows = [row for row in loaded.values() if not changed or row[2].kind != "default"]
    if as_json:
        emit_json({"values": [{"key": key, "value": value, "origin": str(origin)} for key, value, origin in rows]})
        return
    table = Table("key", "value", "origin", box=None, header_style="bold", pad_edge=False)
    for key, value, origin in rows:
        text = "empty" if value is None else plain(value)
        table.add_row(key, text, str(origin), style="dim" if origin.kind == "default" else "")
    answer(table)
    for warning in loaded.warnings:
        show(warning)


def schema() -> None:
    """Print the JSON schema of a recipe, for editors and programs."""
    typer.echo(json.dumps(stored_schema(), indent=2, ensure_ascii=False))


def docs(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A key or a group: train.optimizer.lr, data")],
    as_json: AsJson = False,
) -> None:
    """Print what a key means, its default and its range."""
    known = catalogue(stored_schema())
    found = [known[name] for name in known if name == key or name.startswith(f"{key}.")]
    alias = ALIASES.get(normal(key))
    if not found and alias is not None and alias.key is None:
        answer(alias.note)
        return
    if not found and alias is not None:
        found = [known[name] for name in known if name == alias.key or name.startswith(f"{alias.key}.")]
    if not found:
        short = {name.rpartition(".")[2]: name for name in known}
        like = nearest(key, known) or short.get(nearest(key.rpartition(".")[2], short) or "")
        fixes = [f"did you mean {like}?"] if like else []
        raise UsageError("E023", f"there is no key {key}", where=Where("command line"), fixes=fixes)
    if as_json:
        emit_json({"settings": [_as_json(setting) for setting in found]})
    else:
        answer("\n\n".join(_as_text(setting) for setting in found))


def _as_json(setting: Setting) -> dict[str, str]:
    return {
        "key": setting.key,
        "type": setting.type,
        "default": setting.default,
        "allowed": setting.allowed,
        "text": setting.text,
        "variant": setting.variant,
    }


def _as_text(setting: Setting) -> str:
    from rich.markup import escape

    facts = f"{setting.type}, default {setting.default}" + (f", {setting.allowed}" if setting.allowed else "")
    variant = f"\n  only with {setting.variant}" if setting.variant and "," not in setting.variant else ""
    return f"[bold cyan]{setting.key}[/bold cyan]\n  {escape(setting.text)}\n  [dim]{escape(facts)}[/dim]{variant}"
