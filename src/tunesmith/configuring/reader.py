"""A strict YAML 1.2 reader: plain values, the place of every key, limits against bombs, and no objects ever built."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tunesmith.errors import TunesmithError, Unsafe, UsageError, Where

Key = tuple[str | int, ...]

MAX_BYTES = 1_000_000
MAX_DEPTH = 64
MAX_NODES = 20_000
MAX_DIGITS = 100

_NULL = re.compile(r"(null|Null|NULL|~|)\Z")
_BOOL = re.compile(r"(true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"[-+]?[0-9]+\Z")
_BASED = re.compile(r"0(o[0-7]+|x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_SPECIAL = re.compile(r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z")
_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null")}
_STR = "tag:yaml.org,2002:str"


@dataclass(slots=True)
class Tree:
    """Plain values with the place of every key and the text of every scalar as it was written."""

    value: Any
    places: dict[Key, Where] = field(default_factory=dict)
    texts: dict[Key, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Node:
    kind: str  # "scalar", "list" or "map"
    value: Any
    mark: Any
    text: str = ""


def read_scalar(text: str) -> Any:
    """A plain scalar by the YAML 1.2 core schema: `no` is a word, `010` is ten, `1e-4` is a number, `12:30` is text."""
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text[0] in "tT"
    if len(text) <= MAX_DIGITS:
        if _INT.match(text):
            return int(text)
        if _BASED.match(text):
            return int(text, 0)
        if _FLOAT.match(text):
            return float(text)
        if _SPECIAL.match(text):
            return float(text.lower().replace(".", ""))
    return text


def read_value(text: str) -> Any:
    """The value of `key=value`: a scalar, or a list, object or quoted text when it starts like one."""
    if text[:1] in ("[", "{", '"', "'"):
        return read_yaml(text, "").value
    return read_scalar(text)


def read_file(path: Path) -> Tree:
    """Read a recipe file; refuses what is not a small UTF-8 text file."""
    file = str(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not a file" if path.exists() else "does not exist"
        raise UsageError("E015", f"the recipe {file} {what}", where=Where(file), fixes=["tunesmith recipes"])
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError("E015", f"the recipe {file} cannot be read: {error.strerror}", where=Where(file)) from error
    if len(raw) > MAX_BYTES:
        raise Unsafe(
            "E017",
            f"the recipe {file} is larger than {MAX_BYTES // 1_000_000} MB",
            where=Where(file),
            evidence=["a recipe is a page of settings; is this a data file?"],
            fixes=[f"give it as data: data.train={file}"],
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        bad = raw[error.start : error.start + 4].hex(" ")
        raise UsageError(
            "E011", f"not UTF-8 text at byte {error.start} ({bad})", where=Where(file, line), fixes=["save it as UTF-8"]
        ) from error
    return read_yaml(text, file)


def read_yaml(text: str, file: str) -> Tree:
    """Read one YAML document; an empty one is an empty object."""
    builder = _Builder(text, file)
    try:
        node = builder.document()
    except yaml.YAMLError as error:
        raise _syntax(error, text, file) from error
    tree = Tree({})
    if node is not None:
        tree.value = _flatten(node, (), tree, file)
    return tree


class _Builder:
    """Composes events into nodes, with limits on depth and number while they are read."""

    def __init__(self, text: str, file: str) -> None:
        self.events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
        self.file = file
        self.anchors: dict[str, _Node] = {}
        self.count = 0

    def document(self) -> _Node | None:
        node: _Node | None = None
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                if node is not None:
                    raise UsageError("E011", "more than one document in the file", where=self.where(event.start_mark))
                node = self.node(next(self.events), 1)
        return node

    def where(self, mark: Any) -> Where:
        return _where(mark, self.file)

    def node(self, event: Any, depth: int) -> _Node:
        self.count += 1
        if depth > MAX_DEPTH or self.count > MAX_NODES:
            limit = f"deeper than {MAX_DEPTH} levels" if depth > MAX_DEPTH else f"more than {MAX_NODES:,} values"
            raise Unsafe("E017", f"the file goes {limit}", where=self.where(event.start_mark))
        if isinstance(event, yaml.AliasEvent):
            known = self.anchors.get(event.anchor)
            if known is None:
                raise UsageError("E011", f"unknown alias *{event.anchor}", where=self.where(event.start_mark))
            return known
        self.check_tag(event)
        if isinstance(event, yaml.ScalarEvent):
            plain = event.tag != _STR if event.tag in _PLAIN_TAGS else event.style is None and event.tag is None
            node = _Node("scalar", read_scalar(event.value) if plain else event.value, event.start_mark, event.value)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = _Node("list", self.items(depth), event.start_mark)
        else:
            node = _Node("map", self.pairs(depth), event.start_mark)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def check_tag(self, event: Any) -> None:
        if event.tag in (None, "!") or event.tag in _PLAIN_TAGS:
            return
        short = event.tag.replace("tag:yaml.org,2002:", "!!")
        kind: type[TunesmithError] = Unsafe if "python" in event.tag else UsageError
        code = "E017" if kind is Unsafe else "E011"
        raise kind(code, f"the tag {short} is refused: a recipe is data", where=self.where(event.start_mark))

    def items(self, depth: int) -> list[_Node]:
        found = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            found.append(self.node(event, depth + 1))
        return found

    def pairs(self, depth: int) -> dict[str, tuple[_Node, _Node]]:
        found: dict[str, tuple[_Node, _Node]] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.node(event, depth + 1)
            if key.kind != "scalar" or not key.text:
                raise UsageError("E011", "a key must be a word", where=self.where(event.start_mark))
            if key.text in found:
                first = found[key.text][0].mark
                raise UsageError(
                    "E012",
                    f"the key {key.text} stands twice",
                    where=self.where(event.start_mark),
                    evidence=[f"first on line {first.line + 1}, again on line {event.start_mark.line + 1}"],
                    fixes=["delete one of them"],
                )
            found[key.text] = (key, self.node(next(self.events), depth + 1))
        return found


def _flatten(node: _Node, at: Key, tree: Tree, file: str) -> Any:
    """Values of a node, with the places written into `tree`; aliases are expanded, so they are counted here again."""
    tree.places.setdefault(at, _where(node.mark, file))
    if len(tree.places) > MAX_NODES or len(at) > MAX_DEPTH:
        raise Unsafe("E017", "aliases expand to more values than a recipe can have", where=_where(node.mark, file))
    if node.kind == "scalar":
        tree.texts[at] = node.text
        return node.value
    if node.kind == "list":
        return [_flatten(child, (*at, index), tree, file) for index, child in enumerate(node.value)]
    value = {}
    for name, (key, child) in node.value.items():
        tree.places[(*at, name)] = _where(key.mark, file)
        value[name] = _flatten(child, (*at, name), tree, file)
    return value


def _where(mark: Any, file: str) -> Where:
    return Where(file or None, mark.line + 1, mark.column + 1)


def _syntax(error: yaml.YAMLError, text: str, file: str) -> UsageError:
    """What the YAML scanner met, in words, with the line it met it on."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return UsageError("E011", f"a character that text cannot hold: {error.character!r}", where=Where(file, line))
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    where = Where(file or None) if mark is None else _where(mark, file)
    lines = text.splitlines()
    shown = lines[mark.line] if mark is not None and mark.line < len(lines) else ""
    evidence = [shown.expandtabs(8)[:160]] if shown else []
    if "\t" in shown[: len(shown) - len(shown.lstrip())]:
        return UsageError(
            "E011", "a tab indents this line; YAML wants spaces", where=where, evidence=evidence,
            fixes=["replace the tab by two spaces"],
        )  # fmt: skip
    problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error)
    return UsageError("E011", f"not valid YAML: {problem}", where=where, evidence=evidence)
