"""Numbers in a text, with their units: 1,200 g is 1.2 kg."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

MINUS = r"\-\N{MINUS SIGN}"
NUMBER = rf"[+{MINUS}]?(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?|[+{MINUS}]?\.\d+"
FOUND = re.compile(rf"(?<![\w.])(?:(?P<sign>[$€£])\s?)?(?P<number>{NUMBER})(?:\s?/\s?(?P<below>\d+)(?![\d/]))?")
UNIT = re.compile(r"\s?([%°$€£]|[A-Za-zµμ]+(?:/[A-Za-z]+)?)")
# unit: what it measures, and how many of the first one of its kind it is
UNITS: dict[str, tuple[str, float]] = {
    **dict.fromkeys(("m", "metre", "metres", "meter", "meters"), ("length", 1.0)),
    **dict.fromkeys(("mm", "millimetre", "millimetres", "millimeter", "millimeters"), ("length", 1e-3)),
    **dict.fromkeys(("cm", "centimetre", "centimetres", "centimeter", "centimeters"), ("length", 1e-2)),
    **dict.fromkeys(("km", "kilometre", "kilometres", "kilometer", "kilometers"), ("length", 1e3)),
    **dict.fromkeys(("inch", "inches"), ("length", 0.0254)),
    **dict.fromkeys(("ft", "foot", "feet"), ("length", 0.3048)),
    **dict.fromkeys(("mile", "miles"), ("length", 1609.344)),
    **dict.fromkeys(("kg", "kilogram", "kilograms", "kilo", "kilos"), ("mass", 1.0)),
    **dict.fromkeys(("g", "gram", "grams"), ("mass", 1e-3)),
    **dict.fromkeys(("mg", "milligram", "milligrams"), ("mass", 1e-6)),
    **dict.fromkeys(("t", "tonne", "tonnes"), ("mass", 1e3)),
    **dict.fromkeys(("lb", "lbs", "pound", "pounds"), ("mass", 0.45359237)),
    **dict.fromkeys(("oz", "ounce", "ounces"), ("mass", 0.028349523125)),
    **dict.fromkeys(("s", "sec", "second", "seconds"), ("time", 1.0)),
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), ("time", 1e-3)),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), ("time", 60.0)),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), ("time", 3600.0)),
    **dict.fromkeys(("day", "days"), ("time", 86400.0)),
    **dict.fromkeys(("week", "weeks"), ("time", 604800.0)),
    **dict.fromkeys(("l", "litre", "litres", "liter", "liters"), ("volume", 1.0)),
    **dict.fromkeys(("ml", "millilitre", "millilitres", "milliliter", "milliliters"), ("volume", 1e-3)),
    **dict.fromkeys(("km/h", "kmh", "kph"), ("speed", 1 / 3.6)),
    **dict.fromkeys(("m/s",), ("speed", 1.0)),
    **dict.fromkeys(("%", "percent"), ("share", 0.01)),
    **dict.fromkeys(("$", "dollar", "dollars", "usd"), ("dollars", 1.0)),
    **dict.fromkeys(("€", "euro", "euros", "eur"), ("euros", 1.0)),
    **dict.fromkeys(("£", "gbp"), ("sterling", 1.0)),
}


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as `written`, and in the first unit of its kind; `kind` is empty without a unit that is known."""

    written: float
    value: float
    kind: str = ""


def quantities(text: str) -> list[Quantity]:
    """All that stand in the text, in order."""
    found: list[Quantity] = []
    for match in FOUND.finditer(text):
        number = match["number"].replace(",", "").replace("\N{MINUS SIGN}", "-")
        below = int(match["below"] or 1)
        if below == 0:
            continue
        unit = UNIT.match(text, match.end())
        word = match["sign"] or (unit[1] if unit else "")
        kind, factor = UNITS.get(word) or UNITS.get(word.lower(), ("", 1.0))
        written = float(number) / below
        found.append(Quantity(written, written * factor, kind))
    return found


def agrees(found: Quantity, wanted: Quantity, tolerance: float, *, unit_required: bool) -> bool:
    """Whether the numbers are the same up to a share of the wanted one, in units of one kind.

    Where no unit is wanted, any may stand there ("$18" is 18). Without `unit_required` the wanted one may be left out.
    """
    plain = not wanted.kind or (not found.kind and not unit_required)
    if not plain and found.kind != wanted.kind:
        return False
    one, other = (found.written, wanted.written) if plain else (found.value, wanted.value)
    return math.isclose(one, other, rel_tol=max(tolerance, 1e-9), abs_tol=1e-12)
