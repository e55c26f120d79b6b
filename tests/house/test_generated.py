"""What is generated from the settings is fresh: run `python -m tunesmith.schema` when these fail."""

import json

from tests.house.source import ROOT

from tunesmith.configuring.catalogue import SCHEMA_FILE, catalogue, stored_schema
from tunesmith.configuring.shipped import shipped
from tunesmith.objectives import OBJECTIVES
from tunesmith.schema import reference_text, schema_text


def test_schema_is_fresh():
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text()


def test_reference_page_is_fresh():
    assert (ROOT / "docs" / "reference" / "recipe.md").read_text(encoding="utf-8") == reference_text()


def test_every_objective_of_the_registry_is_in_the_reference():
    page = reference_text()
    for objective in OBJECTIVES:
        assert str(objective.model_fields["name"].default) in page


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
