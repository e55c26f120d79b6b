"""`tunesmith data preview`: the exact tokens of some records and what the loss sees, as text and as a page."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from tunesmith.data.chat import Entry, Outcome, encode_record
from tunesmith.data.config import DataConfig
from tunesmith.data.entries import read_entries
from tunesmith.data.survey import DROPPED
from tunesmith.data.tally import Tally
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.types import Example

if TYPE_CHECKING:
    from rich.console import Group

LEGEND = "⟦trained⟧ (green, bold): the loss sees it   plain (dim): masked   ⟨control token⟩ (magenta)   ↵ line break"

_NOTED = {
    "cut": "older turns were cut to fit data.max_length",
    "split": "the record was split to fit data.max_length",
    "unrolled": "the template rewrites earlier answers, so this record becomes several examples",
    "shielded": "control tokens written in the text are kept as plain text",
    "straddled": "an answer begins inside a token of its prompt; that token is not trained",
    "unstopped": "an answer ends without an end-of-text token",
    "opened": "the generation prompt opens something that an answer lacks",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that make up whole characters, with their common weight; `special` is a control token."""

    ids: tuple[int, ...]
    text: str
    weight: float
    special: bool


@dataclass(frozen=True, slots=True)
class PreviewExample:
    """One example as shown; without pieces when the record was dropped for `dropped`."""

    file: str
    line: int
    part: int  # counts the examples of one record from 1
    parts: int
    tokens: int
    trained: int
    pieces: tuple[Piece, ...] = ()
    notes: tuple[str, ...] = ()
    dropped: str | None = None
    weights: tuple[float, ...] = field(default=())

    @property
    def title(self) -> str:
        place = f"{self.file}:{self.line}"
        if self.dropped is not None:
            return f"{place}  dropped: {self.dropped} ({self.tokens:,} tokens)"
        several = f"  example {self.part} of {self.parts}" if self.parts > 1 else ""
        weights = [f"{weight:g}" for weight in self.weights if weight != 1]
        weighted = f", weights {', '.join(weights)}" if weights else ""
        return f"{place}{several}  {self.tokens:,} tokens, {self.trained:,} trained{weighted}"


def preview(settings: DataConfig, tokenizer: Tokenizer, n: int = 3) -> list[PreviewExample]:
    """The examples of the first `n` training records, exactly as they will be trained."""
    return [shown for entry in islice(_entries(settings), n) for shown in preview_entry(entry, tokenizer, settings)]


def preview_entry(entry: Entry, tokenizer: Tokenizer, settings: DataConfig) -> list[PreviewExample]:
    """All examples of one record, or one without tokens that says why it was dropped."""
    outcome = encode_record(entry, tokenizer, settings)
    notes = tuple(text for name, text in _NOTED.items() if outcome.notes[name])
    if outcome.dropped is not None:
        reason = DROPPED[outcome.dropped]
        return [PreviewExample(entry.file, entry.line, 1, 1, outcome.length, 0, (), notes, reason)]
    return [_shown(example, index, outcome, notes, tokenizer) for index, example in enumerate(outcome.examples)]


def pieces_of(example: Example, tokenizer: Tokenizer) -> tuple[Piece, ...]:
    """The tokens as readable pieces: parts of one character of equal weight are joined."""
    controls = set(tokenizer.control.ids.values())
    found: list[Piece] = []
    waiting: list[int] = []
    rows = list(zip(example.tokens.tolist(), example.weights.tolist(), strict=True))
    for (id, weight), following in zip(rows, [*rows[1:], None], strict=True):
        if id in controls:
            found.append(Piece((id,), tokenizer.token_text(id), weight, True))
            continue
        waiting.append(id)
        ends = following is None or following[1] != weight or following[0] in controls or len(waiting) == 8
        text = tokenizer.token_text(id) if len(waiting) == 1 else tokenizer.decode(waiting)
        if "\ufffd" in tokenizer.decode(waiting):  # part of a character
            if not ends:
                continue
            text = "".join(map(tokenizer.token_text, waiting))
        found.append(Piece(tuple(waiting), text, weight, False))
        waiting = []
    return tuple(found)


def to_text(examples: Sequence[PreviewExample]) -> Group:
    """A rich renderable that reads without colour as well."""
    from rich.console import Group
    from rich.text import Text

    blocks = [Text(LEGEND, style="italic")]
    for number, example in enumerate(examples, 1):
        block = Text(f"\n── segment {number}: {example.title}\n", style="cyan")
        block.append("".join(f"   note: {note}\n" for note in example.notes), style="yellow")
        for text, style in _styled(example):
            block.append(text, style=style)
        blocks.append(block)
    return Group(*blocks)


def to_html(examples: Sequence[PreviewExample], title: str = "Data preview") -> str:
    """One page that needs nothing else; texts are escaped and each token shows its id and weight on hover."""
    parts = [_HEAD.format(title=html.escape(title), legend=html.escape(LEGEND))]
    for number, example in enumerate(examples, 1):
        parts.append(f"<section><h2>segment {number}: {html.escape(example.title)}</h2>")
        parts += [f"<p class=note>note: {html.escape(note)}</p>" for note in example.notes]
        parts.append("<pre>")
        for run in _runs(example.pieces):
            trained = run[0].weight > 0
            parts.append(f"<mark>{html.escape(_opening(run[0]))}" if trained else "<span class=masked>")
            parts += [_html_piece(piece) for piece in run]
            parts.append("⟧</mark>" if trained else "</span>")
        parts.append("</pre></section>")
    return "".join(parts) + "</main></body></html>\n"


def _entries(settings: DataConfig) -> Iterator[Entry]:
    for source in settings.train:
        yield from read_entries(source, Tally(settings.on_bad), settings.limit)


def _shown(
    example: Example, index: int, outcome: Outcome, notes: tuple[str, ...], tokenizer: Tokenizer
) -> PreviewExample:
    trained = example.weights[example.weights > 0]
    return PreviewExample(
        example.file,
        example.line,
        index + 1,
        len(outcome.examples),
        len(example),
        len(trained),
        pieces_of(example, tokenizer),
        notes,
        weights=tuple(sorted(set(trained.tolist()))),
    )


def _runs(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Neighbouring pieces of equal weight."""
    run: list[Piece] = []
    for piece in pieces:
        if run and run[-1].weight != piece.weight:
            yield run
            run = []
        run.append(piece)
    if run:
        yield run


def _opening(piece: Piece) -> str:
    return "⟦" if piece.weight == 1 else f"⟦×{piece.weight:g} "


def _visible(text: str) -> str:
    return text.replace("\r", "␍").replace("\n", "↵\n").replace("\t", "⇥\t").replace("\0", "␀").replace("\x1b", "␛")


def _styled(example: PreviewExample) -> Iterator[tuple[str, str]]:
    for run in _runs(example.pieces):
        trained = run[0].weight > 0
        if trained:
            yield _opening(run[0]), "bold green"
        for piece in run:
            if piece.special:
                yield f"⟨{_visible(piece.text)}⟩", "bold magenta" if trained else "magenta"
            else:
                yield _visible(piece.text), "bold green" if trained else "dim"
        if trained:
            yield "⟧", "bold green"
    yield "\n", ""


def _html_piece(piece: Piece) -> str:
    text = html.escape(_visible(piece.text))
    ids = " ".join(map(str, piece.ids))
    kind, shown = ("control", f"⟨{text}⟩") if piece.special else ("token", text)
    return f'<span class={kind} title="id {ids}, weight {piece.weight:g}">{shown}</span>'


_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0; }}
main {{ max-width: 60rem; margin: 0 auto; padding: 1rem; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; padding: 1rem; border: 1px solid #888; border-radius: .5rem; }}
mark {{ background: light-dark(#d9f2d9, #143d14); color: light-dark(#064d06, #b6f2b6); font-weight: 600; }}
.masked {{ color: light-dark(#595959, #a8a8a8); }}
.control {{ color: light-dark(#8a0f8a, #f0a0f0); border: 1px solid; border-radius: .2rem; }}
.token:hover {{ outline: 1px solid; }}
.note {{ color: light-dark(#7a4b00, #ffce7a); }}
h2 {{ font-size: 1rem; }}
</style></head><body><main><h1>{title}</h1><p>{legend}</p>"""
