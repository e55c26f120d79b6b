"""R14, K8: descriptions of one run by two versions that do not have the same settings."""

from typing import Any

import pytest

from tunesmith.errors import CheckpointError
from tunesmith.objectives import ORPO, SFT
from tunesmith.recipe import Recipe, load_recipe
from tunesmith.running.identity import at_default, known_settings
from tunesmith.train.position import Known, check_same, flatten

KNOWN = Known(
    {"a": {"old": 1, "young": 5}, "a.old": 1, "a.young": 5, "stop": None, "names": {}, "new": {"one": 1, "list": []}},
    lambda key: not key.startswith("free."),
)
OLD = {"a.old": 2, "stop": None, "hash": "x", "free.threads": 3}


def same(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return check_same(old, new, KNOWN)


@pytest.mark.row("R14", "K8")
def test_what_is_younger_than_the_run_had_its_default():
    later = {"a.old": 2, "a.young": 5, "stop": None, "hash": "x", "new.one": 1, "new.list": [], "young hash": "y"}
    assert same(OLD, later) == {}
    assert same({}, {"hash": "x"}) == {}


@pytest.mark.row("R14", "K8")
@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ({}, {"a.young": 6}, "a.young: 5 -> 6"),
        ({}, {"new.one": 2, "new.list": []}, "new.one: 1 -> 2"),
        ({}, {"stop.patience": 3}, "stop.patience: None -> 3"),  # a group that is none unless asked for
        ({"stop": None}, {"stop.patience": 3}, "stop.patience: None -> 3"),
        ({"stop.patience": 3}, {"stop": None}, "stop.patience: 3 -> None"),
        ({"names.x": "y"}, {}, "names.x: 'y' -> None"),  # names of the user's, not of settings
        ({}, {"names.x": "y"}, "names.x: None -> 'y'"),
        ({"a.old": 2}, {"a.old": 1}, "a.old: 2 -> 1"),
        ({"list": [{"x": 1}]}, {"list": [{"x": 1}, {"x": 1}]}, "list: "),
        ({"list": [{"x": 1}]}, {"list": [{"x": 2}]}, "list.0.x: 1 -> 2"),
    ],
)
def test_what_differs_is_refused(old, new, told):
    with pytest.raises(CheckpointError) as caught:
        same(old, new)
    assert any(line.startswith(told) for line in caught.value.diagnostic.evidence), caught.value.diagnostic.evidence


@pytest.mark.row("R14", "K8")
def test_what_is_no_setting_any_more_is_returned_and_what_may_change_is_not():
    assert same({**OLD, "a.lost": 7, "lost": {}}, {"a.old": 2, "stop": None, "hash": "x"}) == {"a.lost": 7, "lost": {}}


@pytest.mark.row("R14", "K8")
def test_every_setting_of_a_real_recipe_may_be_younger():
    """Each key but what the user must give, or gave, is taken away in turn."""
    recipe = Recipe(objective=SFT(), also=(ORPO(),))
    flat, known, usual = flatten(recipe.model_dump(mode="json")), known_settings(recipe), at_default(recipe)
    required = {key for key in flat if key not in known.defaults}
    assert required <= {"model.path", "objective.name"}
    for key in set(flat) - required - {"also"}:
        old = {name: value for name, value in flat.items() if name != key}
        assert check_same(old, flat, known) == {}, key
        assert key in usual
    del flat["also"][0]["beta"]
    assert check_same(flat, flatten(recipe.model_dump(mode="json")), known) == {}


@pytest.mark.row("R14")
def test_a_setting_that_was_changed_is_not_at_its_default():
    given = ["model.path=m", "data.train=d", "train.optimizer.lr=1e-3", "train.clip_norm=2"]
    recipe = load_recipe(None, given, {}).recipe
    kept = at_default(recipe)
    assert "train.optimizer.lr" not in kept
    assert "train.clip_norm" not in kept
    assert "train.deterministic" in kept
