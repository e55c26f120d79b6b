"""Rules that mark an answer: small functions of its text, chosen by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.errors import DataError, Fix, UsageError, Where, nearest
from tunesmith.evaluate.metrics import contains, exact_match, valid_json

PASSED = 0.5  # marks of rules that hold or do not are 1 and 0
LOOKED_AT = 20_000  # characters of an answer that a pattern sees

Marking = Callable[[str, str | None], float]  # answer, reference -> mark


@dataclass(frozen=True, slots=True)
class Rule:
    """`mark(answer, reference)` is the higher the better; `pass_mark` parts right from wrong where a rule knows."""

    name: str
    mark: Marking
    pass_mark: float | None = None


def shorter(argument: str) -> Rule:
    """Fewer characters are better."""
    refuse_argument("shorter", argument)
    return Rule("shorter", lambda answer, _: -float(len(answer)))


def longer(argument: str) -> Rule:
    """More characters are better."""
    refuse_argument("longer", argument)
    return Rule("longer", lambda answer, _: float(len(answer)))


def length_between(argument: str) -> Rule:
    """LOW:HIGH characters; outside, the closer the better."""
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", argument)
    low, high = (int(found[1]), int(found[2])) if found else (1, 0)
    if low > high:
        raise bad_argument("length_between", argument, "length_between:100:400")
    return Rule("length_between", lambda answer, _: -float(max(low - len(answer), len(answer) - high, 0)), 0.0)


def json(argument: str) -> Rule:
    """The whole answer is one JSON object or array."""
    refuse_argument("json", argument)
    return Rule("json", lambda answer, _: float(valid_json(answer.strip())), PASSED)


def holds(argument: str) -> Rule:
    """The text stands in the answer."""
    if not argument.strip():
        raise bad_argument("contains", argument, "contains:Yours sincerely")
    return Rule("contains", lambda answer, _: float(contains(answer, argument)), PASSED)


def lacks(argument: str) -> Rule:
    """The text does not stand in the answer."""
    if not argument.strip():
        raise bad_argument("lacks", argument, "lacks:As an AI")
    return Rule("lacks", lambda answer, _: float(not contains(answer, argument)), PASSED)


def regex(argument: str) -> Rule:
    """The pattern is found in the first 20,000 characters of the answer."""
    try:
        pattern = re.compile(argument)
    except (re.error, RecursionError, OverflowError) as error:
        raise bad_argument("regex", argument, r"regex:^\d+$", str(error)) from error
    return Rule("regex", lambda answer, _: float(pattern.search(answer[:LOOKED_AT]) is not None), PASSED)


def exact(argument: str) -> Rule:
    """The answer is the reference of its record, white space around it aside."""
    refuse_argument("exact", argument)

    def mark(answer: str, reference: str | None) -> float:
        if reference is None:
            raise DataError(
                "E269",
                "the rule exact compares with a reference, and a record has none",
                fixes=["give every record a reference, or its right answer, before sampling", "choose another rule"],
            )
        return float(exact_match(answer, reference))

    return Rule("exact", mark, PASSED)


RULES: dict[str, Callable[[str], Rule]] = {
    "shorter": shorter,
    "longer": longer,
    "length_between": length_between,
    "json": json,
    "contains": holds,
    "lacks": lacks,
    "regex": regex,
    "exact": exact,
}


def find_rule(text: str) -> Rule:
    """`NAME` or `NAME:ARGUMENT`; UsageError E265 for anything else."""
    name, _, argument = text.partition(":")
    if name not in RULES:
        close = nearest(name, RULES)
        raise UsageError(
            "E265",
            f"there is no rule {name!r}",
            where=Where(field="--rule"),
            evidence=[f"known: {', '.join(RULES)}"],
            fixes=[Fix(f"did you mean {close}?")] if close else [],
        )
    return RULES[name](argument)


def refuse_argument(name: str, argument: str) -> None:
    if argument:
        raise bad_argument(name, argument, name)


def bad_argument(name: str, argument: str, example: str, reason: str = "") -> UsageError:
    message = f"the rule {name} cannot be read with {argument!r}" + (f": {reason}" if reason else "")
    return UsageError("E265", message, where=Where(field="--rule"), fixes=[Fix(f"write it as {example!r}")])
