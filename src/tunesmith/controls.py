"""Signs that speak to a terminal instead of its reader, and what stands in their place."""

from __future__ import annotations

DELETE, UNKNOWN = 0x7F, 0xFFFD
# Beginnings of escape sequences in one byte, signs that turn the direction of a line, and halves of signs.
HIDDEN = (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000))
PICTURES = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    DELETE: 0x2421,
    **dict.fromkeys(HIDDEN, UNKNOWN),
}
ESCAPES = {code: f"\\u{code:04x}" for code in (DELETE, *HIDDEN)}


def visible(text: str) -> str:
    """Text that moves, paints and names nothing on a terminal: ESC becomes ␛; newlines and tabs stay."""
    return text.translate(PICTURES)


def escaped(text: str) -> str:
    """The same JSON with those signs as escapes that `json.dumps` leaves as they are."""
    return text.translate(ESCAPES)
