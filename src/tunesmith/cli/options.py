"""Arguments and options that several commands share."""

from typing import Annotated

import typer

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings over the recipe: train.steps=100", show_default=False),
]
Products = Annotated[
    str, typer.Option("--products", help="On a CPU: packed; shared, less memory; int8, fastest and not exact.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
