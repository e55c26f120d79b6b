"""Answers in 8 bits in the plan: refused where nothing multiplies them, by the field that asks for them."""

import pytest

from tunesmith.planning import precision
from tunesmith.planning.precision import product_problems
from tunesmith.recipe import load_recipe

ASKED = ["evaluate.products=int8"]


def problems(words: list[str], dtype: str, device: str) -> list[tuple[str, str | None, dict]]:
    recipe = load_recipe("sft", ["model.path=starter", "data.train=x.jsonl", *words], {}).recipe
    found = product_problems(recipe, dtype, device)
    return [(each.code, each.where.field if each.where else None, dict(each.fixes[0].set)) for each in found]


@pytest.mark.parametrize(("dtype", "device"), [("bfloat16", "cuda"), ("float32", "cpu"), ("float16", "cpu")])
def test_eight_bits_are_refused_with_the_setting_that_mends_it(dtype, device):
    assert problems(ASKED, dtype, device) == [("E428", "evaluate.products", {"evaluate.products": "packed"})]
    assert problems([], dtype, device) == []
    assert problems(["evaluate.products=shared"], dtype, device) == []


def test_they_are_planned_where_the_processor_multiplies_them(monkeypatch):
    monkeypatch.setattr(precision, "serves", lambda dtype: str(dtype) == "torch.bfloat16")
    assert problems(ASKED, "bfloat16", "cpu") == []
    monkeypatch.setattr(precision, "serves", lambda dtype: False)
    assert problems(ASKED, "bfloat16", "cpu")[0][0] == "E428"
