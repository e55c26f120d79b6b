"""Every code that can be printed is explained, and every explanation belongs to a code."""

import ast
import re

from tests.house.source import SOURCE, python_files, tree

PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (SOURCE / "explanations").glob("*.md")}


def used() -> set[str]:
    return {
        node.value
        for path in python_files("src")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[EW]\d{3}", node.value)
    }


def test_every_code_has_a_page_and_every_page_a_code():
    codes = used()
    missing, idle = sorted(codes - PAGES.keys()), sorted(PAGES.keys() - codes)
    assert not missing, f"codes without a page: {' '.join(missing)}"
    assert not idle, f"pages without a code: {' '.join(idle)}"


def test_a_page_has_a_title_and_a_few_short_paragraphs():
    for code, text in PAGES.items():
        title, _, body = text.partition("\n")
        paragraphs = [part for part in body.split("\n\n") if part.strip()]
        assert re.match(r"# \S", title), code
        assert len(title) <= 90, code
        assert 1 <= len(paragraphs) <= 5, code
        assert len(text) <= 2500, code
