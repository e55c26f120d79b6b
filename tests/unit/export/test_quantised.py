"""Folders in int8 and int4: what is stored is what was rounded, and transformers reads the same."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import tiny_model_folder
from tests.unit.export.shapes import loaded
from tests.unit.export.test_huggingface import make_run, trained
from tests.unit.export.test_shelf import call
from transformers import AutoConfig

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import ModelError, UsageError
from tunesmith.export import exporting, quantised
from tunesmith.export.exporting import TYPES, Wish, export
from tunesmith.export.opening import open_model
from tunesmith.export.quantised import (
    BITS,
    GROUP,
    LOSSES,
    as_stored,
    check_layers,
    linear_names,
    packed,
    read_folder,
    stored_weights,
    write_int4,
)
from tunesmith.export.verifying import compared, logits_of
from tunesmith.models.rounded import unpacked
from tunesmith.models.save import save_weights

ROWS = [[5, 9, 200, 31], list(range(20, 60))]


def needs(bits: str):
    package = quantised.PACKAGES[bits]
    return pytest.param(
        bits, marks=pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")
    )


INSTALLED = [needs(bits) for bits in BITS]


def lost(weights: torch.Tensor, back: torch.Tensor) -> float:
    return ((back - weights).square().sum() / weights.square().sum()).item()


def test_packed_numbers_come_back() -> None:
    torch.manual_seed(0)
    weights = torch.randn(8, 4 * GROUP)
    weights[0, :GROUP] = 0
    found = packed(weights)
    assert found["weight_packed"].dtype == torch.int32
    assert found["weight_packed"].shape == (8, 4 * GROUP // 8)
    assert found["weight_shape"].tolist() == [8, 4 * GROUP]
    q = unpacked(found["weight_packed"])
    assert (int(q.min()), int(q.max())) == (-8, 7)
    back = (q.float().unflatten(1, (-1, GROUP)) * found["weight_scale"][..., None]).flatten(1)
    assert torch.all(back[0, :GROUP] == 0)
    assert lost(weights, back) < 2 * LOSSES["int4"]


def test_losses_that_the_limits_are_made_of() -> None:
    torch.manual_seed(0)
    weights = torch.randn(256, 4096)
    scale = weights.abs().amax(1, keepdim=True) / 127
    assert lost(weights, (weights / scale).round().clamp(-128, 127) * scale) == pytest.approx(LOSSES["int8"], rel=0.05)
    found = packed(weights)
    back = (unpacked(found["weight_packed"]).unflatten(1, (-1, GROUP)) * found["weight_scale"][..., None]).flatten(1)
    assert lost(weights, back) == pytest.approx(LOSSES["int4"], rel=0.05)


@pytest.mark.parametrize("architecture", ["gpt2", "mixtral"])
def test_a_model_that_would_stay_as_it_is_is_refused(architecture: str) -> None:
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    with pytest.raises(UsageError, match=rf"E440.*% of the weights in this {architecture}'s layers"):
        check_layers(AutoConfig.for_model(architecture, **size, vocab_size=300), "int4")
    check_layers(AutoConfig.for_model("llama", **size, vocab_size=300), "int4")


def test_matrices_of_layers_are_rounded_and_nothing_else(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "model", intermediate_size=80, tie_word_embeddings=False)
    model, out = loaded(folder), tmp_path / "out"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write_int4(model, out, "5GB")
    tensors = load_file(out / "model.safetensors")
    stored = dict(stored_weights(out))
    assert len(stored) == 2 * 6, "down projections have rows of 80, which no groups of 32 fill"
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.down_proj.weight"):
        assert torch.equal(tensors[name], before[name])
    assert all(lost(before[name], weights) < 2 * LOSSES["int4"] for name, weights in stored.items())
    told = json.loads((out / "config.json").read_text("utf-8"))["quantization_config"]
    assert told["ignore"] == ["lm_head", *(f"model.layers.{at}.mlp.down_proj" for at in range(2))]
    assert not list(out.glob("*.bin"))
    model = as_stored(loaded(folder), out)
    assert torch.equal(
        model.state_dict()["model.layers.1.mlp.up_proj.weight"], stored["model.layers.1.mlp.up_proj.weight"]
    )


def test_linear_layers_without_the_head(tmp_path: Path) -> None:
    config = loaded(tiny_model_folder(tmp_path / "model")).config
    names = linear_names(config)
    assert len(names) == 2 * 7
    assert not any("lm_head" in name or "embed" in name for name in names)


@pytest.mark.parametrize("bits", INSTALLED)
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "phi3"])
def test_transformers_reads_the_same(tmp_path, bits, architecture) -> None:
    folder = tiny_model_folder(tmp_path / "model", architecture, initializer_range=0.1)
    report = export(str(folder), tmp_path / "out", Wish(dtype=bits))
    check = report.checks[0]
    assert check.passed
    assert check.form == bits
    assert 1e-7 < check.difference <= check.limit
    assert check.unexplained < 1e-5
    wanted = logits_of(as_stored(loaded(folder), tmp_path / "out"), ROWS)
    read = logits_of(read_folder(tmp_path / "out", torch.float32), ROWS)
    assert compared(wanted, read)[1] < 1e-3
    ours = logits_of(open_model(str(tmp_path / "out")).model, ROWS)
    assert compared(read, ours)[0] < check.unexplained_limit  # what the export allows
    assert compared(read, ours)[1] < 1e-3
    assert load_tokenizer(tmp_path / "out").eos_ids == (2,)
    assert {path.suffix for path in (tmp_path / "out").iterdir()} <= {".json", ".safetensors", ".md", ".jinja"}


@pytest.mark.parametrize("bits", INSTALLED)
def test_a_tuned_model_in_bf16_and_in_pieces(tmp_path, bits) -> None:
    base = tiny_model_folder(tmp_path / "base", initializer_range=0.2)
    loaded(base).to(torch.bfloat16).save_pretrained(base)
    run = make_run(tmp_path, base)
    save_weights(trained(base), run.path, base)
    report = export(str(run.path), tmp_path / "out", Wish(dtype=bits, shard="60KB"))
    assert report.checks[0].passed
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    for part in (f"matrices in {bits}", "vllm serve out", "rank: 4", "Its weights are rounded", f"{bits} differs by"):
        assert part in card
    assert "tunesmith chat out" in card


@pytest.mark.parametrize("bits", INSTALLED)
def test_a_spoiled_scale_is_seen(tmp_path, bits, monkeypatch) -> None:
    base = tiny_model_folder(tmp_path / "base", initializer_range=0.2)
    true_writer = exporting.write_bits

    def spoil(bits, plain, stage, dtype, shard):
        true_writer(bits, plain, stage, dtype, shard)
        path = stage / "model.safetensors"
        tensors, about = load_file(path), metadata(path)
        name = next(each for each in tensors if "up_proj" in each and each.endswith("scale"))
        tensors[name] *= -3
        save_file(tensors, path, about)

    monkeypatch.setattr(exporting, "write_bits", spoil)
    with pytest.raises(ModelError, match="E435"):
        export(str(base), tmp_path / "out", Wish(dtype=bits))
    assert (tmp_path / "out" / "model.safetensors").is_file()


def metadata(path: Path) -> dict[str, str]:
    raw = path.read_bytes()
    return json.loads(raw[8 : 8 + int(np.frombuffer(raw[:8], np.uint64)[0])])["__metadata__"]


@pytest.mark.parametrize("bits", BITS)
def test_a_missing_package_is_told_before_anything_is_loaded(tmp_path, bits, monkeypatch) -> None:
    base = tiny_model_folder(tmp_path / "base")
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    monkeypatch.setattr(exporting, "load_source", lambda *_: pytest.fail("a weight was loaded"))
    with pytest.raises(UsageError, match=r"(?s)E439.*pip install 'tunesmith\[torchao\]'") as caught:
        export(str(base), tmp_path / "out", Wish(dtype=bits))
    assert {"int8": "torchao", "int4": "compressed-tensors"}[bits] in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_types_that_a_form_has_not(tmp_path, capsys) -> None:
    base = str(tiny_model_folder(tmp_path / "base"))
    for form, dtype, fix in (
        ("onnx", "bfloat16", "--dtype float32 or float16"),
        ("onnx", "int8", "--dtype float32 or float16"),
        ("gguf", "int4", "leave --dtype out"),
        ("ollama", "float16", "leave --dtype out"),
    ):
        assert call("export", base, str(tmp_path / "out"), "--to", form, "--dtype", dtype) == 2
        told = capsys.readouterr().err
        assert "E440" in told
        assert fix in told
        assert not (tmp_path / "out").exists()
    assert set(TYPES) == {"huggingface", "onnx"}
