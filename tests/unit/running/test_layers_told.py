"""A run says once, with the reason, when it trains without the written-out layer."""

from pathlib import Path

import pytest
from tests.tiny import tiny_model_folder
from tests.unit.test_run import rows, start, write_data

from tunesmith.models.base_products import use_products
from tunesmith.models.config import LoraConfig, ModelConfig
from tunesmith.models.layer.use import Use, use_of
from tunesmith.models.load import load_model
from tunesmith.track.run_dir import RunDir


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))


def use(folder: Path, adapter: LoraConfig | None = None, attention: str = "auto") -> Use:
    settings = {"path": str(folder), "adapter": adapter or LoraConfig(), "attention": attention}
    return use_of(load_model(folder, ModelConfig.model_validate(settings)))


def told(run: RunDir) -> list[dict]:
    return [row for row in rows(run.events_file) if row.get("code") == "W097"]


def test_a_run_with_the_fast_layer_is_silent(tmp_path):
    run, _ = start(tiny_model_folder(tmp_path / "m"), write_data(tmp_path / "d.jsonl"), "train.steps=1")
    assert told(run) == []
    assert run.read_run()["decoder_layers"] == {"layers": 2, "fast": 2, "obstacles": {}}
    assert run.read_run()["seed"] == 0


def test_dropout_of_the_adapter_is_named_with_its_fix(tmp_path):
    data = write_data(tmp_path / "d.jsonl")
    run, _ = start(tiny_model_folder(tmp_path / "m"), data, "train.steps=1", "model.adapter.dropout=0.1")
    (warning,) = told(run)
    reason = "self_attn.q_proj is more than a linear layer with LoRA: its adapter drops 0.1 of what goes in"
    assert warning["level"] == "warning"
    assert warning["evidence"] == [f"2 layers: {reason}"]
    assert [fix["set"] for fix in warning["fixes"]] == [{"model.adapter.dropout": 0.0}]
    assert run.read_run()["decoder_layers"] == {"layers": 2, "fast": 0, "obstacles": {reason: 2}}
    assert "W097" in run.log_file.read_text()


def test_products_in_8_bits_are_no_reason(tmp_path):
    model = load_model(tiny_model_folder(tmp_path / "m"), ModelConfig(adapter=LoraConfig(dropout=0.1)))
    use_products(model, "int8")
    (reason,) = use_of(model).obstacles
    assert reason.endswith("its adapter drops 0.1 of what goes in")


def test_dense_attention_is_named_with_its_fix(tmp_path):
    data = write_data(tmp_path / "d.jsonl")
    run, _ = start(tiny_model_folder(tmp_path / "m"), data, "train.steps=1", "model.attention=dense")
    (warning,) = told(run)
    assert warning["evidence"] == ["2 layers: attention is not ragged"]
    assert [fix["set"] for fix in warning["fixes"]] == [{"model.attention": "auto"}]


def test_dropped_attention_is_named(tmp_path):
    data, folder = write_data(tmp_path / "d.jsonl"), tiny_model_folder(tmp_path / "m", attention_dropout=0.1)
    run, _ = start(folder, data, "train.steps=1")
    (warning,) = told(run)
    assert warning["evidence"] == ["2 layers: attention probabilities are dropped"]
    assert "attention_dropout" in warning["fixes"][0]["label"]


def test_another_architecture_is_a_remark_without_a_fix(tmp_path):
    data, folder = write_data(tmp_path / "d.jsonl"), tiny_model_folder(tmp_path / "m", "gemma2")
    run, _ = start(folder, data, "train.steps=1")
    (remark,) = told(run)
    assert (remark["level"], remark["fixes"]) == ("info", [])
    assert remark["evidence"][0].startswith("2 layers: Gemma2DecoderLayer is not written out; LlamaDecoderLayer, ")


def test_another_activation_is_named(tmp_path):
    found = use(tiny_model_folder(tmp_path, hidden_act="gelu"))
    assert found == Use(2, 0, False, {"LlamaDecoderLayer is written out with silu, and this one has gelu": 2})


def test_looking_leaves_the_mode_of_the_model_alone(tmp_path):
    folder = tiny_model_folder(tmp_path)
    model = load_model(folder, ModelConfig(path=str(folder))).eval()
    assert use_of(model).fast == 2
    assert not any(module.training for module in model.modules())
