"""Adapter folders described from their headers alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.tiny import tiny_model_folder
from tests.unit.models.test_adapter_laws import FOLDERS, attached, every

from tunesmith.errors import ModelError
from tunesmith.models.adapter_config import DoraConfig, Ia3Config, LoraConfig, PlacedConfig
from tunesmith.models.adapter_folder import adapter_folder, adapter_folders, describe_adapter
from tunesmith.models.adapters import attach, save_adapter, trainable
from tunesmith.models.config import ModelConfig
from tunesmith.models.load import load_base
from tunesmith.models.prompt_config import PrefixConfig, PTuningConfig
from tunesmith.track.run_dir import RunDir


@every(FOLDERS)
def test_every_kind_of_folder_is_described(settings, tmp_path):
    model = attached(settings)
    save_adapter(model, tmp_path, "base/model")
    facts = describe_adapter(tmp_path)
    plain = settings.word in ("pissa", "olora", "lora_fa")  # written as plain LoRA
    assert facts.method == (("rslora" if settings.rslora else "lora") if plain else settings.word)
    assert facts.base == "base/model"
    assert (facts.layers > 0) is isinstance(settings, PlacedConfig)
    assert facts.bytes == 4 * facts.parameters
    network = isinstance(settings, PTuningConfig) or (isinstance(settings, PrefixConfig) and settings.projection)
    if not plain and not network and settings.word != "vera":  # whose folder holds the frozen matrices too
        assert facts.parameters == sum(parameter.numel() for parameter in trainable(model).values())
    assert facts.misfit is None


def test_what_is_told_of_a_lora(tmp_path):
    save_adapter(attached(LoraConfig(rank=3, alpha=6, targets=("q_proj", "up_proj")), "llama"), tmp_path, "b")
    facts = describe_adapter(tmp_path)
    assert (facts.method, facts.rank, facts.alpha, facts.targets) == ("lora", (3,), 6, ("q_proj", "up_proj"))
    assert facts.layers == 6
    assert facts.parameters == 3 * (3 * (64 + 64) + 3 * (64 + 96))


@pytest.mark.parametrize("settings", [LoraConfig(rank=2), DoraConfig(rank=2), Ia3Config()])
def test_whether_it_fits_a_model(settings, tmp_path):
    fitting, other = (
        tiny_model_folder(tmp_path / name, "llama", num_hidden_layers=layers)
        for name, layers in (("fitting", 2), ("other", 1))
    )
    model = attach(load_base(fitting, ModelConfig(path=str(fitting))), settings)
    save_adapter(model, tmp_path / "adapter", str(fitting))
    assert describe_adapter(tmp_path / "adapter", fitting).misfit == ""
    assert "has no model.layers.1." in describe_adapter(tmp_path / "adapter", other).misfit
    if settings.word == "lora":
        wide = tiny_model_folder(tmp_path / "wide", "llama", intermediate_size=96)
        assert "down_proj is 64 x 96, the adapter's 64 x 128" in describe_adapter(tmp_path / "adapter", wide).misfit


def test_names_of_runs_and_folders_of_folders(tmp_path):
    run = RunDir.create(tmp_path / "runs", "first")
    run.write_config(yaml.safe_dump({}))
    for folder in (run.path / "adapter", tmp_path / "kept" / "one", tmp_path / "kept" / "two"):
        save_adapter(attached(LoraConfig(rank=2), "llama"), folder, "base")
    assert adapter_folder(str(run.path)) == run.path / "adapter"
    assert adapter_folders(str(tmp_path / "runs")) == [run.path / "adapter"]
    assert [path.name for path in adapter_folders(str(tmp_path / "kept"))] == ["one", "two"]
    assert adapter_folders(str(tmp_path / "kept" / "one")) == [tmp_path / "kept" / "one"]


@pytest.mark.parametrize("name", ["nowhere", "empty", "runs/begun"])
def test_what_is_no_adapter_is_told(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    RunDir.create(Path("runs"), "begun").write_config("{}")
    with pytest.raises(ModelError, match="E093"):
        adapter_folder(name)


def test_no_library_is_needed(tmp_path):
    save_adapter(attached(LoraConfig(rank=2), "llama"), tmp_path / "a", "base")
    program = (
        "import json, sys\nfrom tunesmith.cli.main import run\n"
        "try:\n    run(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(json.dumps(sorted({'torch', 'peft', 'transformers'} & set(sys.modules))), file=sys.stderr)\n"
    )
    words = ["adapters", "ls", str(tmp_path / "a"), "--json"]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr.splitlines()[-1]) == []
    (facts,) = json.loads(done.stdout)["adapters"]
    assert (facts["method"], facts["rank"]) == ("lora", [2])
