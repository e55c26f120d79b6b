"""`tunesmith plan`: memory, time, steps and what does not fit, before anything is loaded."""

from __future__ import annotations

import typer

from tunesmith.cli.options import AsJson, Overrides, RecipeName
from tunesmith.cli.output import answer, emit_json, fetching, show


def register(app: typer.Typer) -> None:
    app.command("plan")(plan)


def plan(recipe: RecipeName, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Work out memory, time and steps of a recipe on this machine; no weight is loaded."""
    from tunesmith.cli.plan_view import plan_view
    from tunesmith.errors import DoesNotFit
    from tunesmith.plan import make_plan
    from tunesmith.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    words = " ".join([recipe, *(overrides or ())])
    with fetching() as progress:
        if loaded.recipe.online is None:
            made = make_plan(loaded.recipe, ranks=loaded.recipe.run.ranks, file=words, progress=progress)
        else:
            from tunesmith.iterate.planning import plan_any  # loads transformers

            made = plan_any(loaded.recipe, ranks=loaded.recipe.run.ranks, file=words, progress=progress)
    if as_json:
        emit_json(made.to_json())
    else:
        answer(plan_view(made))
        if loaded.recipe.online is not None:
            answer(loaded.recipe.online.note)
        for problem in (*loaded.warnings, *made.problems):
            show(problem)
    if not made.fits:
        raise typer.Exit(DoesNotFit.exit_code)
