"""Tokens as readable pieces, and the runs of pieces that the loss sees alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.types import Example


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that make up whole characters, with their common weight; `special` is a control token."""

    ids: tuple[int, ...]
    text: str
    weight: float
    special: bool


def pieces_of(example: Example, tokenizer: Tokenizer) -> tuple[Piece, ...]:
    """The tokens as readable pieces: parts of one character of equal weight are joined."""
    controls = set(tokenizer.control.ids.values())
    found: list[Piece] = []
    waiting: list[int] = []
    rows = list(zip(example.tokens.tolist(), example.weights.tolist(), strict=True))
    for (id, weight), following in zip(rows, [*rows, None][1:], strict=True):
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


def runs_of(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Neighbouring pieces of equal weight."""
    run: list[Piece] = []
    for piece in pieces:
        if run and run[-1].weight != piece.weight:
            yield run
            run = []
        run.append(piece)
    if run:
        yield run
