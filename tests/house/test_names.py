"""One word per thing: words that mean something else elsewhere do not name anything here."""

import ast
import re
from itertools import pairwise

from tests.house.source import ROOT, python_files, shown, tree

FORBIDDEN = {"trainer", "datum", "item", "actor", "critic", "job", "dump", "iteration", "args", "kwargs"}
PRIVATE = ("/wo" + "rk/", "shared/de" + "sign", "\u200b")


def words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def defined(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return [node.name, *(argument.arg for argument in every)]
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return [node.id]
    return []


def test_forbidden_words_name_nothing():
    hits = {
        f"{shown(path, node)} {name}"
        for path in python_files("src")
        for node in ast.walk(tree(path))
        for name in defined(node)
        if words(name) & FORBIDDEN
    }
    assert not hits, sorted(hits)


def test_no_class_is_called_a_sample():
    classes = [
        (path, node) for path in python_files("src") for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)
    ]
    assert [shown(path, node) for path, node in classes if words(node.name) & {"sample", "samples", "batcher"}] == []


def test_the_project_speaks_only_of_itself():
    files = [*python_files("src", "tests", "benchmarks"), *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    hits = [str(path.relative_to(ROOT)) for path in files if any(word in path.read_text("utf-8") for word in PRIVATE)]
    assert hits == []


def test_test_files_have_names_of_their_own():
    names = sorted(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, following in pairwise(names) if name == following] == []
