"""`tunesmith export`: every form is read back and compared, and a failed comparison leaves what was written."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from tests.tiny import tiny_model_folder
from tests.unit.export.test_huggingface import ROWS, make_run, trained
from tests.unit.export.test_shelf import call
from transformers import AutoModelForCausalLM

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import ModelError, UsageError
from tunesmith.export import exporting
from tunesmith.export.adapters import add_adapters
from tunesmith.export.exporting import Wish, export
from tunesmith.export.gguf import write
from tunesmith.export.opening import find_model, load_source, open_model
from tunesmith.export.proof import divergence, predictions
from tunesmith.export.verifying import PROMPTS, prompt_rows
from tunesmith.models.adapters import save_adapter
from tunesmith.models.adapters.combining import Mix
from tunesmith.models.config import LoraConfig, ModelConfig
from tunesmith.models.load import load_base, load_model
from tunesmith.models.save import save_weights
from tunesmith.track.run_dir import RunDir


@pytest.fixture
def base(tmp_path) -> Path:
    return tiny_model_folder(tmp_path / "base", tie_word_embeddings=False, initializer_range=0.2)


@pytest.fixture
def adapter(tmp_path, base) -> Path:
    save_adapter(trained(base), tmp_path / "adapter", str(base))
    return tmp_path / "adapter"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_huggingface_in_pieces(tmp_path, adapter, dtype) -> None:
    report = export(str(adapter), tmp_path / "out", Wish(dtype=dtype, shard="100KB"))
    out = tmp_path / "out"
    assert len(list(out.glob("*.safetensors"))) > 1
    assert all(tensor.dtype == getattr(torch, dtype) for tensor in load_file(next(out.glob("*.safetensors"))).values())
    check = report.checks[0]
    assert check.passed
    assert check.prompts == 20
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    wanted = predictions(load_source(find_model(str(adapter))), ROWS)
    assert torch.allclose(predictions(model, ROWS), wanted, atol={"float32": 1e-4, "float16": 2e-2}.get(dtype, 0.2))
    assert json.loads((out / "export.json").read_text("utf-8")) == report.to_json()
    assert load_tokenizer(out).eos_ids == (2,)


def test_tied_embeddings_and_new_tokens(tmp_path) -> None:
    base = tiny_model_folder(tmp_path / "base", tie_word_embeddings=True, initializer_range=0.2)
    tokens = ["<note>", "<end>"]
    settings = ModelConfig.model_validate({"path": str(base), "new_tokens": tokens, "adapter": {"method": "lora"}})
    model = load_model(base, settings)
    run = RunDir.create(tmp_path / "runs", "first")
    run.write_config(yaml.safe_dump({"model": settings.model_dump(mode="json")}))
    run.write_run({"model": {"path": str(base), "folder": str(base)}})
    save_weights(model, run.path, base, new=settings.added)
    rows = load_tokenizer(base).vocab_size + 2
    report = export(str(run.path), tmp_path / "hf", Wish(dtype="float32"))
    assert report.checks[0].logit < 1e-4
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    assert stored["model.embed_tokens.weight"].shape[0] == rows
    assert "lm_head.weight" not in stored
    assert load_tokenizer(tmp_path / "hf").encode("<note>", specials=True) == [rows - 2]
    export(str(run.path), tmp_path / "gguf", Wish("gguf", ("f32",)))
    reader = GGUFReader(tmp_path / "gguf" / "gguf-F32.gguf")
    assert reader.fields["tokenizer.ggml.tokens"].contents()[-2:] == tokens
    assert "output.weight" not in {tensor.name for tensor in reader.tensors}


def test_several_gguf_files_and_the_card(tmp_path, base) -> None:
    run = make_run(tmp_path, base)
    save_weights(trained(base), run.path, base)
    report = export(str(run.path), tmp_path / "mine", Wish("gguf", ("f32", "q8_0"), context=256))
    names = ["mine-F32.gguf", "mine-Q8_0.gguf"]
    assert sorted(path.name for path in (tmp_path / "mine").glob("*.gguf")) == names
    assert {check.file for check in report.checks} == set(names)
    assert report.checks[0].difference < 1e-6 < report.checks[-1].difference
    fields = GGUFReader(tmp_path / "mine" / names[0]).fields
    assert fields["llama.context_length"].contents() == 256
    assert fields["general.name"].contents() == "mine"
    card = (tmp_path / "mine" / "README.md").read_text("utf-8")
    for part in ("written as GGUF", "llama-cli -m mine/mine-F32.gguf", "on 20 prompts", "Q8_0 differs by",
                 "## Limits", "up to 512 tokens", "No score on a task", "rank: 4"):  # fmt: skip
        assert part in card
    assert str(tmp_path) not in card


def test_the_adapter_alone(tmp_path, base, adapter) -> None:
    report = export(str(adapter), tmp_path / "out", Wish("adapter"))
    assert report.checks[0].logit == 0
    wanted = predictions(open_model(str(adapter)).model, ROWS)
    assert torch.equal(predictions(open_model(str(tmp_path / "out")).model, ROWS), wanted)
    with pytest.raises(UsageError, match="E438"):
        export(str(base), tmp_path / "other", Wish("adapter"))


@pytest.mark.parametrize("scales", ["one", "several"])
def test_adapter_as_gguf(tmp_path, base, scales) -> None:
    model = trained(base, LoraConfig(rank=4, alpha=16, targets=("q_proj", "k_proj", "down_proj")))
    save_adapter(model, tmp_path / "adapter", str(base))
    if scales == "several":
        save_adapter(trained(base, LoraConfig(rank=2, targets=("q_proj",)), 2), tmp_path / "other", str(base))
        add_adapters([str(tmp_path / "adapter"), str(tmp_path / "other")], tmp_path / "both", Mix())
        (tmp_path / "adapter").rename(tmp_path / "first")
        (tmp_path / "both").rename(tmp_path / "adapter")
    report = export(str(tmp_path / "adapter"), tmp_path / "out", Wish("gguf-adapter"))
    check = report.checks[0]
    assert check.difference < 1e-5
    assert check.logit < 1e-3
    plain = predictions(load_base(base, ModelConfig(path=str(base))), ROWS)
    assert (plain - predictions(model, ROWS)).abs().max() > 0.1, "the adapter does nothing"
    reader = GGUFReader(tmp_path / "out" / "out-lora.gguf")
    assert [reader.fields[name].contents() for name in ("general.type", "adapter.type")] == ["adapter", "lora"]
    assert len(reader.tensors) == 2 * 2 * 3
    assert [path.name for path in tmp_path.glob("tmp*")] == []


def test_adapter_on_the_embedding_is_refused(tmp_path, base) -> None:
    save_adapter(trained(base, LoraConfig(rank=4, targets=("embed_tokens", "q_proj"))), tmp_path / "a", str(base))
    with pytest.raises(ModelError, match="E436"):
        export(str(tmp_path / "a"), tmp_path / "out", Wish("gguf-adapter"))
    assert not (tmp_path / "out").exists()


def test_a_failed_check_deletes_nothing(tmp_path, base, monkeypatch, capsys) -> None:
    true_writer = exporting.save_merged

    def spoil(merged, dtype, stage, found, shard):
        true_writer(merged, dtype, stage, found, shard)
        tensors = load_file(stage / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"] *= -1
        save_file(tensors, stage / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(exporting, "save_merged", spoil)
    assert call("export", str(base), str(tmp_path / "out")) == 4
    assert "E435" in capsys.readouterr().err
    told = json.loads((tmp_path / "out" / "export.json").read_text("utf-8"))
    assert told["checks"][0]["passed"] is False
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_wrong_key_is_seen_where_the_loss_of_the_type_hides_it(tmp_path, base, monkeypatch) -> None:
    true_settings = write.write_settings

    def spoil(writer, config, family, context):
        true_settings(writer, {**config, "rms_norm_eps": 1e-3}, family, context)

    monkeypatch.setattr(write, "write_settings", spoil)
    with pytest.raises(ModelError, match="not explained by rounding"):
        export(str(base), tmp_path / "out", Wish("gguf", ("q8_0",)))
    told = json.loads((tmp_path / "out" / "export.json").read_text("utf-8"))["checks"][0]
    assert told["difference"] < told["limit"], "the loss of the type alone hides it"


def test_refusals_come_before_anything_is_written(tmp_path, base, capsys, monkeypatch) -> None:
    monkeypatch.setattr(exporting, "load_source", lambda *_: pytest.fail("a weight was loaded"))
    neox = tiny_model_folder(tmp_path / "neox", "gpt_neox")
    for words, code in (
        ((str(neox), "--to", "gguf"), "E431"),
        ((str(base), "--to", "gguf", "--type", "q3_x"), "E430"),
        ((str(base), "--shard", "many"), "E430"),
        ((str(base), "--to", "gguff"), "E020"),
        ((str(base), "--dtype", "int5"), "E020"),
        ((str(base), "--to", "gguf-adapter"), "E438"),
    ):
        assert call("export", words[0], str(tmp_path / "out"), *words[1:]) in (2, 4)
        assert code in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("keep")
    assert call("export", str(base), str(tmp_path / "taken")) == 2
    assert "E157" in capsys.readouterr().err


def test_command_tells_what_it_wrote(tmp_path, base, capsys) -> None:
    assert call("export", str(base), str(tmp_path / "out"), "--to", "gguf", "--type", "q8_0,q4_0", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [check["form"] for check in told["checks"] if "llama" not in check["form"]] == ["Q8_0", "Q4_0"]
    assert call("export", str(base), str(tmp_path / "hf"), "--dtype", "bfloat16") == 0
    assert "the likeliest token is the same at" in capsys.readouterr().out


def test_a_window_that_gguf_forgets_is_told(tmp_path) -> None:
    folder = tiny_model_folder(tmp_path / "model", "mistral", sliding_window=64)
    report = export(str(folder), tmp_path / "out", Wish("gguf", ("f32",)))
    assert [warning.code for warning in report.warnings] == ["W430"]
    assert export(str(folder), tmp_path / "short", Wish("gguf", ("f32",), context=64)).warnings == ()


def test_prompts_are_twenty_with_records_of_the_run_first(tmp_path, base) -> None:
    rows = prompt_rows(find_model(str(base)), load_tokenizer(base))
    assert len(rows) == len(PROMPTS) == 20
    assert all(0 < len(row) <= 32 for row in rows)


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
def test_llama_cpp_takes_the_adapter_on_a_file_of_the_base(tmp_path, base, adapter) -> None:
    from llama_cpp import Llama  # pyright: ignore[reportMissingImports]

    export(str(base), tmp_path / "whole", Wish("gguf", ("f32",)))
    export(str(adapter), tmp_path / "lora", Wish("gguf-adapter"))
    file, part = tmp_path / "whole" / "whole-F32.gguf", tmp_path / "lora" / "lora-lora.gguf"
    model = Llama(str(file), lora_path=str(part), n_ctx=64, logits_all=True, verbose=False)
    model.eval(ROWS[1])
    found = torch.from_numpy(model.scores[: len(ROWS[1])].copy()).float().log_softmax(-1)
    wanted = predictions(load_source(find_model(str(adapter)), "float32"), [ROWS[1]])
    plain = predictions(load_base(base, ModelConfig(path=str(base))), [ROWS[1]])
    assert divergence(wanted, found) < 1e-4 < 1e-2 < divergence(wanted, plain)
