"""What is generated from the settings is fresh: run `python -m tunesmith.schema` when these fail."""

import json
import re

from tests.house.source import ROOT

from tunesmith.configuring.catalogue import SCHEMA_FILE, catalogue, stored_schema
from tunesmith.configuring.shipped import shipped
from tunesmith.objectives import OBJECTIVES
from tunesmith.schema import objectives_text, reference_text, schema_text


def test_schema_is_fresh():
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text()


def test_reference_page_is_fresh():
    assert (ROOT / "docs" / "reference" / "recipe.md").read_text(encoding="utf-8") == reference_text()


def test_page_of_objectives_is_fresh():
    assert (ROOT / "docs" / "reference" / "objectives.md").read_text(encoding="utf-8") == objectives_text()


def test_the_table_of_objectives_is_the_registry():
    rows = re.findall(r"^\| \[`(\w+)`\]\(#(\w+)\) \|", objectives_text(), re.M)
    assert rows == [(objective().title, objective().title) for objective in OBJECTIVES]
    assert len(set(rows)) == len(rows)
    for objective in OBJECTIVES:
        assert objective().title in reference_text()


def test_every_objective_cites_and_explains_itself():
    for objective in OBJECTIVES:
        assert objective.__doc__, objective
        assert "arXiv:" in objective.__doc__, objective


def test_every_setting_has_one_line_of_text():
    for key, setting in catalogue(stored_schema()).items():
        assert setting.text, key
        assert "\n" not in setting.text, key
        assert setting.text.endswith("."), key


def test_the_schema_is_closed_to_unknown_keys():
    groups = [json.loads(schema_text()), *json.loads(schema_text())["$defs"].values()]
    assert all(group["additionalProperties"] is False for group in groups if "properties" in group)


def test_recipes_of_the_clone_are_the_shipped_ones():
    assert {path.name for path in (ROOT / "recipes").glob("*.yaml")} == {path.name for path in shipped().values()}
