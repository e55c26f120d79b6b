import json

import pytest
from tests.tiny import tiny_model_folder
from tests.unit.models.values import classifier
from transformers import AutoModelForCausalLM

from tunesmith.errors import ModelError
from tunesmith.models.adapters import attach
from tunesmith.models.adapters import trainable as trainable_parameters
from tunesmith.models.config import FreezeConfig, FullConfig, LoraConfig, ModelConfig
from tunesmith.models.inventory import take_inventory, trainable
from tunesmith.models.load import load_base

ADAPTERS = [
    LoraConfig(rank=4),
    LoraConfig(rank=3, targets=("q_proj", "down_proj")),
    FullConfig(),
    FreezeConfig(last=1),
    FreezeConfig(first=1, names=("norm",)),
]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma2", "phi3", "smollm3", "olmo2"])
def test_counts_from_headers_equal_the_loaded_model(tmp_path, architecture, tied):
    folder = tiny_model_folder(tmp_path, architecture, tie_word_embeddings=tied)
    inventory = take_inventory(folder)
    for adapter in ADAPTERS:
        if architecture == "phi3" and isinstance(adapter, LoraConfig) and "q_proj" in adapter.targets:
            continue
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert inventory.total == sum(parameter.numel() for parameter in model.parameters())
        model.requires_grad_(False)
        expected = sum(value.numel() for value in trainable_parameters(attach(model, adapter)).values())
        assert trainable(inventory, adapter).total == expected, adapter


def test_modules_to_save_are_counted_beside_the_adapter(tmp_path):
    folder = tiny_model_folder(tmp_path, tie_word_embeddings=False)
    adapter = LoraConfig(rank=2, modules_to_save=("lm_head",))
    model = AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False)
    expected = sum(value.numel() for value in trainable_parameters(attach(model, adapter)).values())
    counted = trainable(take_inventory(folder), adapter)
    assert counted.total == expected
    assert counted.base == take_inventory(folder).head
    assert counted.head


def test_the_lowest_trained_layer_is_known(tmp_path):
    inventory = take_inventory(tiny_model_folder(tmp_path))
    assert trainable(inventory, FreezeConfig(last=1)).lowest_layer == 1
    assert trainable(inventory, FreezeConfig(last=2)).lowest_layer == 0
    assert trainable(inventory, LoraConfig()).lowest_layer == 0


def test_f07_a_config_with_another_number_of_layers_is_refused(tmp_path):
    folder = tiny_model_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match="says 3 layers, the weights hold 2"):
        take_inventory(folder)


@pytest.mark.parametrize("value", [None, 0, -4, "64", 2**50, True])
def test_a_size_that_is_none_is_named(tmp_path, value):
    folder = tiny_model_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": value}))
    with pytest.raises(ModelError, match="hidden_size"):
        take_inventory(folder)


@pytest.mark.parametrize(
    "architecture", ["llama", "gemma2", "bert", "roberta", "distilbert", "modernbert", "deberta-v2"]
)
@pytest.mark.parametrize("outputs", [1, 5])
def test_a_model_with_a_head_is_counted_as_it_is_loaded(tmp_path, architecture, outputs):
    model = classifier(architecture, tmp_path, outputs)
    inventory = take_inventory(tmp_path, outputs)
    assert inventory.total == sum(parameter.numel() for parameter in model.parameters())
    assert inventory.projected == outputs
    assert inventory.layers == 3
    assert not any("lm_head" in name or "predictions" in name for name in inventory.tensors)
    for adapter in (LoraConfig(rank=4), FullConfig(), FreezeConfig(last=1), FreezeConfig()):
        loaded = load_base(tmp_path, ModelConfig(path="x"), outputs=outputs)
        expected = sum(value.numel() for value in trainable_parameters(attach(loaded, adapter)).values())
        assert trainable(inventory, adapter).total == expected, adapter
    model.save_pretrained(tmp_path / "saved")
    assert take_inventory(tmp_path / "saved", outputs).total == inventory.total
    with pytest.raises(ModelError, match="E241"):
        take_inventory(tmp_path / "saved", outputs + 1)
