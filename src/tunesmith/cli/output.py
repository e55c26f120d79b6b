"""How the command line speaks: answers on stdout, everything else on stderr, one JSON envelope, one look for errors."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import __version__
from tunesmith.controls import escaped, visible
from tunesmith.distributed.launched import leave_word
from tunesmith.errors import Diagnostic, TunesmithError
from tunesmith.paths import home
from tunesmith.redaction import redacted, redacted_tree

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

SCHEMA = 1
_STYLES = {"error": "bold red", "warning": "bold yellow", "info": "bold blue"}


def console() -> Console:
    """The terminal for people: stderr. Honours NO_COLOR and prints plain text when it is not a terminal."""
    from tunesmith.terminal import Terminal

    return Terminal(stderr=True, highlight=False)


@contextmanager
def fetching() -> Iterator[Callable[[str, float], None]]:
    """What to tell how far a model is fetched: a phase and its share from 0 to 1; silent when none needs to be."""
    from tunesmith.track.progress import Progress, make_progress

    with ExitStack() as stack:
        shown: list[Progress] = []

        def tell(phase: str, share: float) -> None:
            if not shown:
                shown.append(stack.enter_context(make_progress(console())))
            shown[0].phase(f"model, {phase}, percent", round(share * 100), 100)

        yield tell


def answer(content: RenderableType) -> None:
    """Print a command's answer for a person on stdout."""
    from tunesmith.terminal import Terminal

    Terminal(highlight=False).print(content, soft_wrap=isinstance(content, str))


def emit_json(content: Mapping[str, Any]) -> None:
    """Print a command's answer for a program: one object on one line of stdout, with the version of its shape."""
    text = json.dumps({"schema": SCHEMA, **content}, ensure_ascii=False, default=str, allow_nan=False)
    sys.stdout.write(escaped(text) + "\n")
    sys.stdout.flush()


def show(diagnostic: Diagnostic) -> None:
    """Print one error or warning on stderr; without colours where these cannot be loaded any more."""
    try:
        console().print(_painted(diagnostic), soft_wrap=True)
    except (MemoryError, OSError, ImportError):
        sys.stderr.write(visible(redacted(str(diagnostic))) + "\n")


def fail(error: TunesmithError, *, as_json: bool = False) -> int:
    """Show every diagnostic of the error and return its exit code; a rank hands them to our launcher instead."""
    if leave_word(error.exit_code, error.diagnostics):
        return error.exit_code
    if as_json:
        first, *others = (redacted_tree(diagnostic.to_json()) for diagnostic in error.diagnostics)
        emit_json({"error": first, "others": others})
    else:
        for diagnostic in error.diagnostics:
            show(diagnostic)
    return error.exit_code


def crash(error: BaseException, *, as_json: bool = False, folder: Path | None = None) -> int:
    """Write the traceback of a bug of ours to a file under `folder` and say so in one diagnostic; exit code 1."""
    trace = "".join(traceback.format_exception(error))
    text = visible(redacted(f"tunesmith {__version__}\nargv {sys.argv}\n\n{trace}"))
    name = time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}.txt"
    path = (folder or home() / "crash") / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError:
        path = Path(tempfile.mkdtemp(prefix="tunesmith-crash-")) / name
        path.write_text(text, encoding="utf-8")
    message = (
        f"Tunesmith met a bug of its own: {type(error).__name__}: {redacted(str(error)).partition(chr(10))[0][:200]}"
    )
    bug = TunesmithError("E029", message, evidence=[f"traceback: {path}"], fixes=["report it with that file"])
    return fail(bug, as_json=as_json)


def _painted(diagnostic: Diagnostic) -> Text:
    """`Diagnostic.__str__` with colours: the same characters, so that a log and a terminal agree."""
    from rich.text import Text

    text = Text(redacted(str(diagnostic)))
    text.highlight_regex(r"^(error|warning|info)\[[EW]\d+\]", _STYLES[diagnostic.level])
    text.highlight_regex(r"^  --> .*$", "cyan")
    text.highlight_regex(r"^   \|", "blue")
    text.highlight_regex(r"^  (fix|or ):", "bold green")
    text.highlight_regex(r"^  more: .*$", "dim")
    return text
