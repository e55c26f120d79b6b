"""Products in 8 bits are for frozen weights."""

import pytest

from tunesmith.errors import TunesmithError
from tunesmith.recipe import load_recipe


def test_full_tuning_has_no_frozen_products():
    with pytest.raises(TunesmithError, match=r"E014[\s\S]*every weight is trained") as caught:
        load_recipe(None, ["model.adapter.method=full", "model.base_products=int8"], {})
    assert caught.value.diagnostic.fixes[0].set == {"model.base_products": "exact"}


@pytest.mark.parametrize("method", ["lora", "freeze"])
def test_adapters_and_frozen_layers_have_them(method):
    more = ["model.adapter.last=2"] if method == "freeze" else []
    load_recipe(None, [f"model.adapter.method={method}", *more, "model.base_products=int8"], {})
