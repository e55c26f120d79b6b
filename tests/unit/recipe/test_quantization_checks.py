"""Settings of a quantised base: how they are written, and what does not go with them."""

import pytest

from tunesmith.errors import UsageError
from tunesmith.models.quantization_config import Fp4, Int8, Nf4, Unquantized
from tunesmith.recipe import load_recipe


def recipe_of(*settings):
    return load_recipe(None, list(settings), {}).recipe


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ([], Unquantized()),
        (["model.quantization=nf4"], Nf4(double_quantization=True)),
        (["model.quantization=fp4"], Fp4(double_quantization=False)),
        (["model.quantization=int8"], Int8()),
        (["model.quantization.double_quantization=false"], Nf4(double_quantization=False)),
        (["model.quantization=fp4", "model.quantization.double_quantization=true"], Fp4(double_quantization=True)),
    ],
)
def test_a_word_or_a_group(settings, wanted):
    assert recipe_of(*settings).model.quantization == wanted


@pytest.mark.parametrize("method", ["full", "bitfit", "norms", "freeze"])
def test_frozen_weights_are_not_trained(method):
    more = ["model.adapter.last=1"] if method == "freeze" else []
    with pytest.raises(UsageError) as caught:
        recipe_of("model.quantization=nf4", f"model.adapter.method={method}", "train.optimizer.lr=2e-5", *more)
    assert caught.value.diagnostic.code == "E320"
    assert caught.value.diagnostic.fixes[0].set == {"model.adapter.method": "lora"}
    with pytest.raises(UsageError) as caught:
        recipe_of("model.base_products=int8", "model.adapter=llama_adapter")
    assert caught.value.diagnostic.code == "E329"
    assert caught.value.diagnostic.fixes[0].set == {"model.base_products": "exact"}


def test_products_in_8_bits_go_with_exact_weights():
    with pytest.raises(UsageError) as caught:
        recipe_of("model.quantization=int8", "model.base_products=int8")
    assert caught.value.diagnostic.code == "E321"
    assert caught.value.diagnostic.fixes[0].set == {"model.base_products": "exact"}


def test_adaption_prompts_need_layers_with_parameters():
    with pytest.raises(UsageError) as caught:
        recipe_of("model.quantization=nf4", "model.adapter=llama_adapter")
    assert caught.value.diagnostic.code == "E329"
    assert caught.value.diagnostic.fixes[0].set == {"model.adapter.method": "lora"}


def test_loftq_needs_a_quantised_base_to_begin_with():
    with pytest.raises(UsageError) as caught:
        recipe_of("model.adapter=loftq")
    assert caught.value.diagnostic.code == "E322"
    assert recipe_of("model.adapter=loftq", "model.quantization=nf4").model.adapter.rounds == 1


@pytest.mark.parametrize("method", ["dora", "pissa", "olora", "vera", "oft", "ia3"])
def test_methods_that_read_the_weights_have_them_expanded(method):
    assert recipe_of("model.quantization=nf4", f"model.adapter={method}").model.adapter.method == method


def test_double_quantisation_is_for_4_bits():
    with pytest.raises(UsageError, match="double_quantization"):
        recipe_of("model.quantization=int8", "model.quantization.double_quantization=true")
