"""The fault table, the tests that name its rows, and the page that is made of them belong together."""

import json
import re

import pytest
from tests import fault_rows
from tests.house.source import ROOT, python_files
from tests.torture_report import FIGURES, HEAD, MISSING, PAGE, TESTED, page

LINES = [
    {
        "kind": "figure",
        "nightly": True,
        "rows": ["R6"],
        "claim": "found",
        "figure": "3 of 3",
        "seed": 0,
        "test": "a::b[c]",
    },
    {"kind": "outcome", "nightly": True, "rows": ["R6", "R7"], "test": "a::b[c]", "outcome": "passed", "reason": ""},
    {
        "kind": "outcome",
        "nightly": False,
        "rows": ["R6"],
        "test": "a::d",
        "outcome": "skipped",
        "reason": "Skipped: x|y",
    },
    {
        "kind": "outcome",
        "nightly": False,
        "rows": ["R9"],
        "test": "a::e",
        "outcome": "skipped",
        "reason": "Skipped: no",
    },
]


def marked() -> dict[str, set[str]]:
    """File -> the rows that its markers name."""
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in python_files("tests")}
    return {
        name: {row for words in re.findall(r"mark\.row\(([^)*]+)\)", text) for row in re.findall(r'"(\w+)"', words)}
        for name, text in texts.items()
    }


def names() -> list[list[str]]:
    """The rows that the name of each test begins with."""
    texts = (path.read_text(encoding="utf-8") for path in python_files("tests"))
    return [fault_rows.rows_of_name(name) for text in texts for name in re.findall(r"def (test_\w+)", text)]


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a page, as rows of cells."""
    found: list[list[list[str]]] = []
    before = ""
    for line in text.splitlines():
        if line.startswith("| "):
            found += [[]] if not before.startswith("| ") else []
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        before = line
    return found


def check_page(text: str) -> list[list[list[str]]]:
    assert text.startswith(HEAD)
    found = tables(text)
    assert [tuple(each[0]) for each in found] == [FIGURES, TESTED, MISSING]
    for each in found:
        assert {len(line) for line in each} == {len(each[0])}
        assert set(each[1]) == {"---"}
    named = [line[0] for each in found[1:] for line in each[2:]]
    assert sorted(named, key=fault_rows.order) == sorted(fault_rows.ROWS, key=fault_rows.order)
    assert {row for line in found[0][2:] for row in line[1].split()} <= fault_rows.ROWS.keys()
    return found


def test_markers_name_rows_of_the_table():
    found = marked()
    assert any(found.values())
    assert {name: unknown for name, named in found.items() if (unknown := named - fault_rows.ROWS.keys())} == {}


def test_reasons_are_given_for_rows_of_the_table():
    assert fault_rows.NOT_COVERED.keys() <= fault_rows.ROWS.keys()
    assert all(fault_rows.NOT_COVERED.values())


def test_every_row_has_a_test_or_a_reason():
    tested = {row for rows in marked().values() for row in rows} | {row for name in names() for row in name}
    assert fault_rows.ROWS.keys() - tested == fault_rows.NOT_COVERED.keys()


def test_rows_are_read_from_names():
    assert fault_rows.rows_of_name("test_r06_r17_damage_is_named") == ["R6", "R17"]
    assert fault_rows.rows_of_name("test_w1_every_route") == ["W1"]
    assert (
        fault_rows.rows_of_name("test_a1_tokenizers")
        == fault_rows.rows_of_name("test_r99_x")
        == fault_rows.rows_of_name("test_r6")
        == []
    )


def test_evidence_is_a_line_of_the_file_and_belongs_to_a_row_of_the_test(tmp_path, monkeypatch):
    file = tmp_path / "evidence"
    monkeypatch.setenv(fault_rows.VARIABLE, str(file))
    tested = fault_rows.Tested("a::b", ("R6", "R8"), nightly=True)
    tested.publish("R6", claim="found", figure="3 of 3", seed=1)
    with pytest.raises(AssertionError, match="the figure of"):
        tested.publish("R7", claim="c", figure="f")
    with pytest.raises(ValueError, match="R99"):
        tested.publish("R99", claim="c", figure="f")
    tested.ended("passed", "")
    figure, outcome = map(json.loads, file.read_text().splitlines())
    assert figure == {**LINES[0], "test": "a::b", "seed": 1}
    assert (outcome["rows"], outcome["outcome"]) == (["R6", "R8"], "passed")
    monkeypatch.delenv(fault_rows.VARIABLE)
    tested.publish("R6", claim="c", figure="f")
    assert len(file.read_text().splitlines()) == 2


def test_the_page_tells_figures_tests_and_what_is_missing():
    figures, tested, missing = check_page(page(LINES, "today"))
    assert figures[2:] == [["found", "R6", "3 of 3", "0", "`pytest -m nightly a::b`"]]
    assert [line[2] for line in tested[2:]] == ["1 passed, 1 skipped (x\\|y)", "1 passed"]
    why = {line[0]: line[2] for line in missing[2:]}
    assert (why["R9"], why["P6"], why["R1"]) == (
        "0 passed, 1 skipped (no)",
        fault_rows.NOT_COVERED["P6"],
        "no test yet",
    )


def test_the_page_is_well_formed_and_nothing_failed():
    if not PAGE.exists():
        pytest.skip("`make torture` writes it")
    text = PAGE.read_text(encoding="utf-8")
    check_page(text)
    assert "FAILED" not in text
