"""Rounded folders are opened by every command: the plain copy holds numbers times scales, and is made once."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.command import call
from tests.tiny import tiny_model_folder
from tests.unit.export.shapes import loaded

from tunesmith.errors import ModelError
from tunesmith.export.opening import find_model, open_model
from tunesmith.export.quantised import as_stored, linear_names, write_int4
from tunesmith.export.verifying import ROUNDED, compared, logits_of
from tunesmith.models import rounded
from tunesmith.models.inventory import take_inventory
from tunesmith.models.locate import locate
from tunesmith.models.rounded import bits_of, plain, rounded_from
from tunesmith.recipe import load_recipe
from tunesmith.serve.house import House
from tunesmith.serve.settings import Limits as ServeLimits
from tunesmith.track.run_dir import RunDir

ROWS = [[5, 9, 200, 31], list(range(20, 60))]
INT8 = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_version": 2}}}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return tiny_model_folder(folder, initializer_range=0.2, tie_word_embeddings=False, intermediate_size=80)


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))


def rounded_to(bits: str, base: Path, out: Path, dtype: torch.dtype = torch.float32) -> Path:
    """As the export writes it; int8 in the names and shapes of torchao, which need not be installed."""
    model = loaded(base).to(dtype)
    if bits == "int4":
        write_int4(model, out, "60KB")
    else:
        names = linear_names(model.config)
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in model.state_dict().items():
            module = name.removesuffix(".weight")
            if module not in names:
                tensors[name] = tensor
                continue
            scale = (tensor.float().abs().amax(1, keepdim=True) / 127).to(dtype)
            numbers = (tensor.float() / scale.float()).round().clamp(-128, 127).to(torch.int8)
            zeros = torch.zeros(len(tensor), 1, dtype=torch.int8)
            parts = {"qdata": numbers, "scale": scale, "zero_point": zeros}
            tensors |= {f"{module}._weight_{part}": each for part, each in parts.items()}
        out.mkdir()
        save_file(tensors, out / "model.safetensors", {"format": "pt"})
        model.config.quantization_config = INT8
        model.config.save_pretrained(out)
    for path in base.iterdir():
        if not (out / path.name).exists() and path.name != "model.safetensors":
            shutil.copy(path, out)
    return out


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_those_of_the_stored_numbers(bits, dtype, base, tmp_path) -> None:
    folder = rounded_to(bits, base, tmp_path / "out", dtype)
    opened = open_model(str(folder), dtype="float32")
    wanted = logits_of(as_stored(loaded(base), folder), ROWS)
    far = compared(wanted, logits_of(loaded(base), ROWS))[0]
    found = compared(wanted, logits_of(opened.model, ROWS))
    assert found[0] < (1e-5 if dtype == torch.float32 else ROUNDED)  # what the export allows
    assert found[0] < far / 10  # it is the rounded model, not the exact one
    assert opened.tokenizer.has_template
    assert rounded_from(opened.source.base) == bits
    assert opened.source.settings.path == str(folder)


def test_the_copy_is_made_once_and_anew_when_the_folder_changes(base, tmp_path, monkeypatch) -> None:
    folder = rounded_to("int4", base, tmp_path / "out")
    monkeypatch.setattr(rounded, "SHARD", 60_000)
    made = plain(folder)
    assert len(list(made.glob("*.safetensors"))) > 1
    assert take_inventory(made).total == take_inventory(base).total
    assert "quantization_config" not in json.loads((made / "config.json").read_text())
    monkeypatch.setattr(rounded, "write_plain", lambda *_: pytest.fail("it is made again"))
    assert locate(str(folder)) == made
    assert plain(made) == made
    assert plain(base) == base
    monkeypatch.undo()
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    name = "model.norm.weight"
    path = next(each for each in folder.glob("*.safetensors") if name in load_file(each))
    tensors = load_file(path)
    save_file({**tensors, name: tensors[name] + 1}, path, {"format": "pt"})
    assert plain(folder) != made


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("_weight_zero_point", lambda each: each + 1, "zero is not at zero"),
        ("_weight_scale", lambda each: each[:-1], "do not fit"),
        ("_weight_scale", None, "scale"),
        ("_weight_qdata", lambda each: each[:, :-1].contiguous(), None),
    ],
)
def test_parts_that_do_not_fit_are_told(part, change, words, base, tmp_path) -> None:
    folder = rounded_to("int8", base, tmp_path / "out")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = f"model.layers.1.mlp.up_proj.{part}"
    found = tensors.pop(name)
    save_file(tensors if change is None else {**tensors, name: change(found)}, path, {"format": "pt"})
    if words is None:  # a matrix of another shape is told by what it has no place in
        with pytest.raises(ModelError, match="E081"):
            open_model(str(folder))
        return
    with pytest.raises(ModelError, match=rf"(?s)E525.*model\.layers\.1\.mlp\.up_proj.*{words}"):
        open_model(str(folder))
    assert not [each for each in (tmp_path / "home" / "models").iterdir() if each.is_dir()]


@pytest.mark.parametrize(
    "told",
    [
        {"quant_method": "gptq"},
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Float8WeightOnlyConfig"}}},
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"a": {"weights": {"num_bits": 8, "type": "int", "symmetric": True}}},
        },
        "gptq",
    ],
)
def test_other_forms_are_refused_with_what_opens_them(told, base, tmp_path, capsys) -> None:
    folder = shutil.copytree(base, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": told}))
    assert bits_of({"quantization_config": told}) is None
    assert call("chat", str(folder), "--prompt", "Hello") == 4
    shown = capsys.readouterr().err
    assert "E089" in shown
    assert f"vllm serve {folder}" in shown.replace("\n", " ")


def test_every_command_opens_them_and_says_so(base, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = str(rounded_to("int8", base, tmp_path / "out"))
    said = f"{name} holds int8 weights"
    Path("asked.jsonl").write_text(json.dumps({"prompt": "Hello", "completion": "there"}) + "\n")
    for words in (
        ("chat", name, "--prompt", "Hello", "--max-new-tokens", "2"),
        ("eval", name, "--data", "asked.jsonl", "--metrics", "loss"),
        ("eval", name, "--suite", "patterns", "--limit", "2"),
        ("sample", name, "--prompts", "asked.jsonl", "--max-new-tokens", "2"),
    ):
        assert call(*words) == 0
        assert said in capsys.readouterr().err, words
    assert call("export", name, "again", "--dtype", "float32") == 0
    assert "W529" in capsys.readouterr().err
    assert compared(logits_of(open_model("again").model, ROWS), logits_of(open_model(name).model, ROWS))[0] < 1e-6
    assert json.loads(Path("again/export.json").read_text())["base"] == "out"
    house = House({"m": name}, ServeLimits())
    assert rounded_from(house.sources["m"].base) == "int8"
    assert house.writers.keys() == {"m"}


def test_an_adapter_is_trained_on_one_and_opened_again(base, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = rounded_to("int4", base, tmp_path / "out")
    Path("data.jsonl").write_text(json.dumps({"prompt": "Hello", "completion": "there"}) + "\n")
    settings = ["data.train=data.jsonl", f"model.path={folder}", "train.steps=2", "run.name=on-int4"]
    assert call("train", "sft", *settings, "--yes") == 0
    assert "W529" in capsys.readouterr().err
    run = RunDir(Path("runs/on-int4"))
    assert find_model("runs/on-int4").base == locate(str(folder))
    named = json.loads((run.path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert locate(named) == locate(str(folder))
    recipe = load_recipe(run.config_file, (), {}).recipe
    assert recipe.model.path == str(folder)
    logits = logits_of(open_model("runs/on-int4/adapter").model, ROWS)
    assert compared(logits, logits_of(open_model("runs/on-int4").model, ROWS))[1] == 0
