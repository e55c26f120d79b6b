"""`tunesmith data preview`: the exact tokens of some records and what the loss sees, as text and as a page."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

from tunesmith.data.chat import Entry, encode_record
from tunesmith.data.config import DataConfig
from tunesmith.data.entries import read_entries
from tunesmith.data.outcome import IMITATION
from tunesmith.data.pieces import Piece, runs_of
from tunesmith.data.preview_answers import PreviewAnswer, answers_shown, label_of, prompt_of
from tunesmith.data.survey import DROPPED
from tunesmith.data.tally import Tally
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.types import Example, Kind, Task

if TYPE_CHECKING:
    from rich.console import Group

SAME = "⟪same beginning as the other answers⟫ (dim)"
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
class PreviewExample:
    """One example as shown; without pieces when the record was dropped for `dropped`.

    With `answers` the pieces are those of the prompt they share.
    """

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
    answers: tuple[PreviewAnswer, ...] = ()
    label: str = ""

    @property
    def title(self) -> str:
        place = f"{self.file}:{self.line}"
        if self.dropped is not None:
            return f"{place}  dropped: {self.dropped} ({self.tokens:,} tokens)"
        several = f"  example {self.part} of {self.parts}" if self.parts > 1 else ""
        weights = [f"{weight:g}" for weight in self.weights if weight != 1]
        weighted = f", weights {', '.join(weights)}" if weights else ""
        label = f"  label {self.label}" if self.label else ""
        return f"{place}{several}  {self.tokens:,} tokens, {self.trained:,} trained{weighted}{label}"


def preview(settings: DataConfig, tokenizer: Tokenizer, n: int = 3, task: Task = IMITATION) -> list[PreviewExample]:
    """The examples of the first `n` training records, exactly as they will be trained."""
    entries = islice(_entries(settings, task.kind), n)
    return [shown for entry in entries for shown in preview_entry(entry, tokenizer, settings, task)]


def preview_entry(
    entry: Entry, tokenizer: Tokenizer, settings: DataConfig, task: Task = IMITATION
) -> list[PreviewExample]:
    """All examples of one record, or one without tokens that says why it was dropped."""
    outcome = encode_record(entry, tokenizer, settings, task)
    notes = tuple(text for name, text in _NOTED.items() if outcome.notes[name])
    if outcome.dropped is not None:
        reason = DROPPED[outcome.dropped]
        return [PreviewExample(entry.file, entry.line, 1, 1, outcome.length, 0, (), notes, reason)]
    count = len(outcome.examples)
    return [
        replace(_shown(example, notes, tokenizer, task), part=index + 1, parts=count)
        for index, example in enumerate(outcome.examples)
    ]


def to_text(examples: Sequence[PreviewExample]) -> Group:
    """A rich renderable that reads without colour as well."""
    from rich.console import Group
    from rich.text import Text

    blocks = [Text(_legend(examples), style="italic")]
    for number, example in enumerate(examples, 1):
        block = Text(f"\n── segment {number}: {example.title}\n", style="cyan")
        block.append("".join(f"   note: {note}\n" for note in example.notes), style="yellow")
        for text, style in _styled(example):
            block.append(text, style=style)
        blocks.append(block)
    return Group(*blocks)


def to_html(examples: Sequence[PreviewExample], title: str = "Data preview") -> str:
    """One page that needs nothing else; texts are escaped and each token shows its id and weight on hover."""
    parts = [_HEAD.format(title=html.escape(title), legend=html.escape(_legend(examples)))]
    for number, example in enumerate(examples, 1):
        parts.append(f"<section><h2>segment {number}: {html.escape(example.title)}</h2>")
        parts += [f"<p class=note>note: {html.escape(note)}</p>" for note in example.notes]
        if example.answers:
            count = sum(len(piece.ids) for piece in example.pieces)
            parts.append(f"<h3>prompt, {count:,} tokens, computed once</h3>")
        parts.append(f"<pre>{_html_pieces(example.pieces)}</pre>")
        for answer in example.answers:
            same = "".join(map(_html_piece, answer.same))
            marked = f'<span class="masked same">⟪{same}⟫</span>' if same else ""
            parts.append(f"<h3>{html.escape(answer.name)}, {answer.tokens:,} tokens</h3>")
            parts.append(f"<pre>{marked}{_html_pieces(answer.pieces)}</pre>")
        parts.append("</section>")
    return "".join(parts) + "</main></body></html>\n"


def _entries(settings: DataConfig, kind: Kind) -> Iterator[Entry]:
    for source in settings.train:
        yield from read_entries(source, Tally(settings.on_bad), settings.limit, kind)


def _shown(example: Example, notes: tuple[str, ...], tokenizer: Tokenizer, task: Task) -> PreviewExample:
    trained = example.weights[example.weights > 0]
    return PreviewExample(
        example.file,
        example.line,
        1,
        1,
        len(example),
        len(trained),
        prompt_of(example, tokenizer),
        notes,
        weights=tuple(sorted(set(trained.tolist()))),
        answers=tuple(answers_shown(example, tokenizer, task)),
        label=label_of(example, task),
    )


def _legend(examples: Sequence[PreviewExample]) -> str:
    return f"{LEGEND}   {SAME}" if any(answer.same for one in examples for answer in one.answers) else LEGEND


def _opening(piece: Piece) -> str:
    return "⟦" if piece.weight == 1 else f"⟦×{piece.weight:g} "


def _visible(text: str) -> str:
    return text.replace("\r", "␍").replace("\n", "↵\n").replace("\t", "⇥\t").replace("\0", "␀").replace("\x1b", "␛")


def _styled(example: PreviewExample) -> Iterator[tuple[str, str]]:
    if example.answers:
        yield f"   prompt, {sum(len(piece.ids) for piece in example.pieces):,} tokens, computed once\n", "cyan"
    yield from _styled_pieces(example.pieces)
    for answer in example.answers:
        yield f"\n   {answer.name}, {answer.tokens:,} tokens\n", "cyan"
        if answer.same:
            yield f"⟪{_visible(''.join(piece.text for piece in answer.same))}⟫", "dim italic"
        yield from _styled_pieces(answer.pieces)
    yield "\n", ""


def _styled_pieces(pieces: Sequence[Piece]) -> Iterator[tuple[str, str]]:
    for run in runs_of(pieces):
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


def _html_pieces(pieces: Sequence[Piece]) -> str:
    parts = []
    for run in runs_of(pieces):
        trained = run[0].weight > 0
        parts.append(f"<mark>{html.escape(_opening(run[0]))}" if trained else "<span class=masked>")
        parts += [_html_piece(piece) for piece in run]
        parts.append("⟧</mark>" if trained else "</span>")
    return "".join(parts)


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
h2, h3 {{ font-size: 1rem; }}
.same {{ font-style: italic; }}
</style></head><body><main><h1>{title}</h1><p>{legend}</p>"""
