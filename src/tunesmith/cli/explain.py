"""`tunesmith explain`: the long text of an error or warning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.options import AsJson
from tunesmith.cli.output import answer, emit_json
from tunesmith.errors import UsageError, Where, nearest

FOLDER = Path(__file__).parent.parent / "explanations"


def register(app: typer.Typer) -> None:
    app.command("explain")(explain)


def explain(
    code: Annotated[
        str | None, typer.Argument(metavar="CODE", help="For example E031; all codes when left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what an error or warning means and how to end it."""
    pages = {path.stem: path for path in sorted(FOLDER.glob("*.md"))}
    if code is None:
        titles = {name: _title(path) for name, path in pages.items()}
        if as_json:
            emit_json({"codes": titles})
        else:
            answer("\n".join(f"[bold]{name}[/bold]  {title}" for name, title in titles.items()))
        return
    page = pages.get(code.strip("[]").upper())
    if page is None:
        like = nearest(code.upper(), pages)
        fixes = [f"did you mean {like}?"] if like else ["tunesmith explain"]
        raise UsageError("E024", f"there is no error or warning {code}", where=Where("command line"), fixes=fixes)
    if as_json:
        emit_json({"code": page.stem, "title": _title(page), "text": page.read_text(encoding="utf-8")})
        return
    from rich.markdown import Markdown

    answer(Markdown(page.read_text(encoding="utf-8")))


def _title(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
