import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.hostile import tunesmith
from tests.tiny import tiny_model_folder

from tunesmith.errors import ModelError
from tunesmith.models.adapter_folder import describe_adapter
from tunesmith.models.adapter_settings import read_settings
from tunesmith.models.adapter_types import KINDS, read_adapter_object
from tunesmith.models.safety import is_adapter

SHAPES = {"A": (2, 64), "B": (64, 2)}
SETTINGS = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"],
    "lora_dropout": 0.0, "bias": "none", "rank_pattern": {}, "base_model_name_or_path": None,
}  # fmt: skip

WRONG = [
    ("r", 10**9), ("r", 10**6), ("r", "2"), ("r", -1), ("r", 2.5), ("r", True), ("lora_alpha", "x"),
    ("lora_alpha", 10**400), ("lora_alpha", float("nan")), ("lora_alpha", float("inf")), ("lora_dropout", [1]),
    ("rank_pattern", {"q_proj": 10**9}), ("rank_pattern", {"q_proj": 1000}), ("rank_pattern", [2]),
    ("alpha_pattern", [1]), ("alpha_pattern", {"q_proj": "x"}), ("target_modules", 5), ("modules_to_save", 5),
    ("modules_to_save", [5]), ("target_parameters", 3), ("layers_to_transform", ["a"]), ("layers_pattern", {}),
    ("base_model_name_or_path", ["x"]), ("peft_type", ["LORA"]), ("bias", 5), ("use_dora", "x"),
    ("init_lora_weights", [1]), ("num_virtual_tokens", 65),
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("base") / "model")


def adapter(folder: Path, base: Path | None = None, **changes: object) -> Path:
    folder.mkdir()
    settings = {**SETTINGS, "base_model_name_or_path": base and str(base), **changes}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight": torch.ones(shape)
        for layer in range(2)
        for side, shape in SHAPES.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.row("F8")
@pytest.mark.parametrize(("key", "value"), WRONG, ids=str)
def test_a_setting_that_cannot_be_is_told_by_its_name(tmp_path, key, value):
    folder = adapter(tmp_path / "a", **{key: value})
    with pytest.raises(ModelError) as caught:
        read_settings(folder)
    found = caught.value.diagnostic
    assert found.code == "E093"
    assert found.message.startswith(f"{key}")
    assert found.where.file == str(folder / "adapter_config.json")
    assert found.fixes[0].label == "copy the adapter again, both files of it"


@pytest.mark.row("F8")
def test_what_peft_writes_is_read(tmp_path):
    assert read_settings(adapter(tmp_path / "a")) == SETTINGS
    pruned = {"rank_pattern": {"model.layers.0.self_attn.q_proj": [True, False]}, "peft_type": "ADALORA", "init_r": 64}
    assert read_adapter_object(adapter(tmp_path / "b", **pruned))["init_r"] == 64
    assert {key for keys in KINDS for key in keys} >= SETTINGS.keys()


@pytest.mark.row("F8")
def test_layers_that_are_used_several_times_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"E094.*layers of the base several times") as caught:
        read_adapter_object(adapter(tmp_path / "a", layer_replication=[[0, 1_000_000]]))
    assert caught.value.diagnostic.where.field == "layer_replication"


HOSTILE = {
    "rank": ({"r": 10**9}, "E093"),
    "another rank": ({"r": 4}, "E092"),
    "base": ({"base_model_name_or_path": ["x"]}, "E093"),
    "layers": ({"layer_replication": [[0, 1_000_000]]}, "E094"),
    "no layer": ({"target_modules": ["nothing"]}, "E092"),
    "no such layer": ({"layers_to_transform": [999]}, "E092"),
}


@pytest.mark.row("F8")
@pytest.mark.parametrize(("changes", "code"), HOSTILE.values(), ids=HOSTILE)
def test_chat_tells_what_is_wrong_with_an_adapter(base, tmp_path, changes, code):
    done = tunesmith("chat", adapter(tmp_path / "a", base, **changes), "--prompt", "hi", "--max-new-tokens", "1")
    assert (done.code, f"error[{code}]" in done.text) == (4, True), done.text


@pytest.mark.row("F8")
def test_other_readers_of_the_settings_tell_it_too(tmp_path):
    folder = adapter(tmp_path / "a", base_model_name_or_path=["x"])
    with pytest.raises(ModelError, match="E093"):
        describe_adapter(folder)
    assert "model.path=BASE" in str(is_adapter(folder))
    shutil.rmtree(folder)


def test_an_adapter_that_fits_still_talks(base, tmp_path):
    done = tunesmith("chat", adapter(tmp_path / "a", base), "--prompt", "hi", "--max-new-tokens", "1")
    assert done.code == 0
