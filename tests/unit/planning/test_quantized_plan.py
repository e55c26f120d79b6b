"""A base in few bits: bytes that are planned are bytes that are held, and what cannot be is refused before loading."""

import pytest
import torch
from tests.tiny import tiny_model_folder

from tunesmith.models.adapters import save_adapter
from tunesmith.models.config import ModelConfig
from tunesmith.models.inventory import take_inventory, trainable
from tunesmith.models.load import load_base, load_model
from tunesmith.models.quantization_config import Fp4, Int8, Nf4, Unquantized
from tunesmith.models.quantized.files import quantized_layers
from tunesmith.models.quantized.linear import QuantizedLinear
from tunesmith.planning.memory import MAPPED, Load, estimate
from tunesmith.planning.quantized import quantization_problems, weight_bytes
from tunesmith.recipe import Recipe

KINDS = [Nf4(), Nf4(double_quantization=False), Fp4(), Int8()]


def recipe_of(folder, **model):
    return Recipe.model_validate({"model": {"path": str(folder), **model}})


def codes_of(folder, **model):
    recipe = recipe_of(folder, **model)
    return [(found.code, found) for found in quantization_problems(recipe, take_inventory(folder))]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.told())
@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_planned_bytes_are_those_of_the_loaded_model(kind, architecture, tmp_path):
    folder = tiny_model_folder(tmp_path, architecture)
    settings = ModelConfig(path=str(folder)).model_copy(update={"quantization": kind})
    model = load_base(folder, settings)
    bits = sum(layer.packed.nbytes for layer in quantized_layers(model).values())
    rest = sum(parameter.nbytes for parameter in model.parameters())
    matrices = [layer.packed.shape for layer in quantized_layers(model).values()]
    largest = max(outputs * inputs for outputs, inputs in matrices)
    assert weight_bytes(take_inventory(folder), 4, kind, joined=False) == bits + rest + 4 * largest


def test_side_by_side_the_widest_projection_is_in_full_for_a_moment(tmp_path):
    inventory = take_inventory(tiny_model_folder(tmp_path))
    alone, joined = (weight_bytes(inventory, 2, Nf4(), joined=joined) for joined in (False, True))
    assert joined - alone == 2 * inventory.intermediate * inventory.hidden
    assert weight_bytes(inventory, 2, Unquantized(), joined=True) == 2 * inventory.total


def test_the_rest_of_the_plan_stays_what_it_is(tmp_path):
    inventory, adapter = take_inventory(tiny_model_folder(tmp_path)), ModelConfig().adapter
    exact, held = (
        estimate(inventory, trainable(inventory, adapter), adapter, Load(500, 100, "bfloat16", quantization=kind))
        for kind in (Unquantized(), Nf4())
    )
    assert held.weights < exact.weights
    assert exact.peak - exact.weights == held.peak - held.weights + MAPPED["cpu"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_codes_do_not_depend_on_the_type_that_is_computed_in(dtype, tmp_path):
    folder = tiny_model_folder(tmp_path)
    settings = ModelConfig.model_validate({"path": str(folder), "quantization": {"name": "nf4"}, "dtype": dtype})
    exact = load_base(folder, ModelConfig(path=str(folder), dtype="float32"))
    model = load_base(folder, settings)
    layers = quantized_layers(model)
    assert len(layers) == 14
    assert isinstance(model.lm_head, torch.nn.Linear)
    assert not isinstance(model.lm_head, QuantizedLinear)
    assert {str(each.dtype) for each in model.parameters()} == {f"torch.{dtype}"}
    from tunesmith.models.quantized.packed import pack

    for name, layer in layers.items():
        wanted = pack(exact.get_parameter(f"{name}.weight"), Nf4())
        assert torch.equal(layer.packed.codes, wanted.codes)
    assert not model.is_quantized
    assert "quantization_config" not in model.config.to_dict()
    assert model.generation_config.eos_token_id == 2


def test_a_quantised_layer_is_not_trained_in_full_beside_the_adapter(tmp_path):
    folder = tiny_model_folder(tmp_path)
    adapter = {"method": "lora", "modules_to_save": ["lm_head", "up_proj"]}
    ((code, found),) = codes_of(folder, quantization={"name": "nf4"}, adapter=adapter)
    assert code == "E324"
    assert found.fixes[0].set == {"model.adapter.modules_to_save": ["lm_head"]}
    assert codes_of(folder, adapter=adapter) == []


def test_matrices_of_other_layers_are_refused(tmp_path):
    folder = tiny_model_folder(tmp_path, "mixtral", num_local_experts=2, num_experts_per_tok=1)
    ((code, found),) = codes_of(folder, quantization={"name": "nf4"})
    assert code == "E325"
    assert "experts" in found.evidence[0]
    assert codes_of(folder) == []


def test_an_adapter_meets_the_base_that_it_was_trained_on(tmp_path):
    folder = tiny_model_folder(tmp_path / "model")
    for name, adapter in (("lora", {"method": "lora"}), ("loftq", {"method": "loftq", "rounds": 2})):
        settings = recipe_of(folder, quantization={"name": "nf4"}, adapter=adapter).model
        save_adapter(load_model(folder, settings), tmp_path / name, str(folder))
    for path, other, code in (("lora", "int8", "W320"), ("lora", "none", "W320"), ("loftq", "fp4", "E326")):
        ((found, problem),) = codes_of(folder, quantization={"name": other}, adapter_path=str(tmp_path / path))
        assert found == code
        assert problem.fixes[0].set["model.quantization"]["name"] == "nf4"
    for path in ("lora", "loftq"):
        assert codes_of(folder, quantization={"name": "nf4"}, adapter_path=str(tmp_path / path)) == []
