"""Every regular expression of the source reads what was made to be hard for it in a time that grows with its length."""

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


def used_as() -> dict[str, set[str]]:
    """Name of a compiled expression -> the functions that are called of it anywhere."""
    found: dict[str, set[str]] = {}
    for path in python_files("src"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found.setdefault(node.value.id, set()).add(node.attr)
    return found


def compiled_names(whole: ast.AST) -> dict[int, str]:
    """Line of a call of `re.compile` -> the name that is given to what it makes."""
    return {
        node.value.lineno: node.targets[0].id
        for node in ast.walk(whole)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name)
    }


def expressions() -> dict[str, tuple[str, str | bytes]]:
    """Place -> how it is used and the pattern, of every call of `re` with a literal."""
    found, uses = {}, used_as()
    for path in python_files("src"):
        names = compiled_names(tree(path))
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
                functions = {node.func.attr}
                if node.func.attr == "compile":
                    functions = uses.get(names.get(node.lineno, ""), set()) & FUNCTIONS
                anchored = functions and functions <= {"match", "fullmatch"}
                found[f"{path.relative_to(ROOT)}:{node.lineno}"] = (max(functions) if anchored else "search", pattern)
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


def hard(pattern: str | bytes, length: int = SIZE) -> set[str]:
    """Long texts that almost match: a part repeated to the end, with and without what leads to it."""
    items = _parser.parse(pattern)
    made = {"a", " ", "\n", "<", '"', "\\", "1", "[", "{", sample(items) or "a"}
    pairs = {("", part) for part in made}
    for before, part in repeats(items):
        pairs |= {(before, part), ("", before + part), ("", part)}
    return {(before + part * (length // max(1, len(part))))[:length] + "\0" for before, part in pairs if part}


def seconds(pattern: str | bytes, text: str, function: str = "search") -> float:
    """Of CPU, to find all that there is; `match` and `fullmatch` look in one place only."""
    compiled = re.compile(pattern)
    anchored = {"match": compiled.match, "fullmatch": compiled.fullmatch}.get(function)
    given = text.encode("latin-1", "replace") if isinstance(pattern, bytes) else text
    whole = len(text)
    for size in (
        max(2, whole // 50),
        whole,
    ):  # a short one first, so that a quadratic one is found before it takes minutes
        begin = time.process_time()
        part = given[: size - 1] + given[-1:]  # type: ignore[operator]
        for found in compiled.finditer(part) if anchored is None else [anchored(part)]:
            del found
        taken = time.process_time() - begin
        if taken > SECONDS / 4 and size < whole:
            return taken * (whole / size)
    return taken


def test_the_harness_finds_what_is_slow():
    assert seconds(r"(a+)+\Z", "a" * 22 + "\0") > SECONDS
    assert max(seconds(r"\s+\Z", text) for text in hard(r"\s+\Z", SIZE // 10)) > SECONDS
    assert max(seconds(r"<.*?>", text) for text in hard(r"<.*?>", SIZE // 10)) > SECONDS
    assert max(seconds(r"\s+", text) for text in hard(r"\s+")) < SECONDS


def check_all(length: int) -> int:
    """Read so many characters with every expression; how many there are."""
    found = expressions()
    assert len(found) > 80
    slow = {}
    for place, (function, pattern) in found.items():
        texts = hard(pattern, length)
        worst = max(((seconds(pattern, text, function), text[:40]) for text in texts), default=(0.0, ""))
        if worst[0] > SECONDS:
            slow[place] = (pattern, round(worst[0], 2), worst[1])
    assert not slow, "\n".join(f"{place}: {told}" for place, told in slow.items())
    return len(found)


def test_s22_no_expression_is_quadratic():
    check_all(SIZE // 10)


@pytest.mark.nightly
def test_s22_every_expression_reads_a_hundred_kilobytes_at_once(evidence):
    figure = f"{check_all(SIZE)} of all"
    evidence("S22", claim="regular expressions that read 100 KB of hard text in 0.1 s", figure=figure)
