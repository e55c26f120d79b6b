"""S22: every regular expression of the source reads 100 KB that were made to be hard for it in a tenth of a second."""

import ast
import re
import time
from collections.abc import Iterator
from re import _constants, _parser  # pyright: ignore[reportAttributeAccessIssue]

import pytest
from tests.house.source import ROOT, python_files, tree

SIZE = 100_000
SECONDS = 0.1
FUNCTIONS = {"compile", "match", "search", "fullmatch", "sub", "subn", "split", "findall", "finditer"}
REPEATS = {_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT}
GROUPS = {_constants.SUBPATTERN: 3, _constants.ATOMIC_GROUP: None}


def literal(node: ast.AST) -> str | bytes | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) else None


def expressions() -> dict[str, str | bytes]:
    """Place -> pattern, of every call of `re` with a literal."""
    found = {}
    for path in python_files("src"):
        for node in ast.walk(tree(path)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "re"
                and node.func.attr in FUNCTIONS
                and node.args
                and (pattern := literal(node.args[0])) is not None
            ):
                found[f"{path.relative_to(ROOT)}:{node.lineno}"] = pattern
    return found


def sample(items) -> str:
    """A text that the parsed items match, roughly: what matters is that it keeps the engine busy."""
    made = ""
    for kind, value in items:
        if kind in (_constants.LITERAL, _constants.NOT_LITERAL):
            made += chr(value) if kind is _constants.LITERAL else ("a" if value != ord("a") else "b")
        elif kind is _constants.ANY:
            made += "a"
        elif kind is _constants.IN:
            made += member(value)
        elif kind in REPEATS:
            made += sample(value[2]) * max(1, value[0])
        elif kind is _constants.BRANCH:
            made += sample(value[1][0])
        elif kind in GROUPS:
            made += sample(value[3] if GROUPS[kind] else value)
    return made


def member(value) -> str:
    known = {
        _constants.CATEGORY_DIGIT: "1",
        _constants.CATEGORY_SPACE: " ",
        _constants.CATEGORY_WORD: "a",
        _constants.CATEGORY_NOT_SPACE: "a",
        _constants.CATEGORY_NOT_DIGIT: "a",
        _constants.CATEGORY_NOT_WORD: "-",
    }
    if value[0][0] is _constants.NEGATE:
        excluded = {given for kind, given in value if kind is _constants.LITERAL}
        return next(letter for letter in "ab1 -" if ord(letter) not in excluded)
    kind, given = value[0]
    return known[given] if kind is _constants.CATEGORY else chr(given[0] if kind is _constants.RANGE else given)


def repeats(items, before: str = "") -> Iterator[tuple[str, str]]:
    """What stands before each repeated part, and the part once."""
    for kind, value in items:
        if kind in REPEATS:
            if value[1] > 16:
                yield before, sample(value[2])
            yield from repeats(value[2], before)
        elif kind is _constants.BRANCH:
            for branch in value[1]:
                yield from repeats(branch, before)
        elif kind in GROUPS:
            yield from repeats(value[3] if GROUPS[kind] else value, before)
        before += sample([(kind, value)])


def hard(pattern: str | bytes) -> set[str]:
    """Long texts that almost match: a part repeated to the end, with and without what leads to it."""
    items = _parser.parse(pattern)
    made = {"a", " ", "\n", "<", '"', "\\", "1", "[", "{", sample(items) or "a"}
    pairs = {("", part) for part in made}
    for before, part in repeats(items):
        pairs |= {(before, part), ("", before + part), ("", part)}
    return {(before + part * (SIZE // max(1, len(part))))[:SIZE] + "\0" for before, part in pairs if part}


def seconds(pattern: str | bytes, text: str) -> float:
    compiled = re.compile(pattern)
    given = text.encode("latin-1", "replace") if isinstance(pattern, bytes) else text
    for size in (SIZE // 50, SIZE):  # a short one first, so that a quadratic one is found before it takes minutes
        begin = time.process_time()
        for found in compiled.finditer(given[: size - 1] + given[-1:]):
            del found
        taken = time.process_time() - begin
        if taken > SECONDS / 4 and size < SIZE:
            return taken * (SIZE / size)
    return taken


def test_the_harness_finds_what_is_slow():
    assert max(seconds(r"(a+)+\Z", text[:30] + "\0") for text in hard(r"(a+)+\Z")) < 60
    assert max(seconds(r"\s+\Z", text) for text in hard(r"\s+\Z")) > SECONDS
    assert max(seconds(r"<.*?>", text) for text in hard(r"<.*?>")) > SECONDS
    assert max(seconds(r"\s+", text) for text in hard(r"\s+")) < SECONDS


@pytest.mark.row("S22")
def test_s22_every_expression_is_linear(evidence):
    found = expressions()
    assert len(found) > 80
    slow = {}
    for place, pattern in found.items():
        worst = max(((seconds(pattern, text), text[:40]) for text in hard(pattern)), default=(0.0, ""))
        if worst[0] > SECONDS:
            slow[place] = (pattern, round(worst[0], 2), worst[1])
    assert not slow, "\n".join(f"{place}: {told}" for place, told in slow.items())
    evidence("S22", claim="regular expressions that read 100 KB of hard text in 0.1 s", figure=f"{len(found)} of all")
