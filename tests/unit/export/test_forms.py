"""What every form owes: a whole card, tokens that a run added, an embedding that is the head or is not."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from gguf import GGUFReader
from safetensors.torch import load_file
from tests.tiny import tiny_model_folder
from tests.unit.export.test_graph import NEEDS_ONNX
from tests.unit.export.test_huggingface import make_run, trained, write_results
from tests.unit.export.test_quantised import INSTALLED

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import ModelError
from tunesmith.export.exporting import Wish, export
from tunesmith.models.config import ModelConfig
from tunesmith.models.load import load_model
from tunesmith.models.save import save_weights
from tunesmith.track.run_dir import RunDir

ONNX = pytest.param(Wish("onnx"), "onnx", marks=[NEEDS_ONNX, pytest.mark.nightly], id="onnx")
ROUNDED = [pytest.param(Wish(dtype=each.values[0]), "transformers", marks=each.marks, id=each.values[0])  # pyright: ignore[reportArgumentType]
           for each in INSTALLED]  # fmt: skip


def finished(path: Path) -> RunDir:
    """A run with a licence, a recipe, data and figures."""
    base = tiny_model_folder(path / "base", tie_word_embeddings=False, initializer_range=0.2)
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    run = make_run(path, base)
    save_weights(trained(base), run.path, base)
    write_results(run)
    return run


@pytest.mark.parametrize(
    ("wish", "library"),
    [
        pytest.param(Wish(), "transformers", id="huggingface"),
        pytest.param(Wish("adapter"), "peft", id="adapter"),
        pytest.param(Wish("gguf", ("q3_k_m",)), "gguf", id="gguf"),
        pytest.param(Wish("gguf-adapter"), "gguf", id="gguf-adapter"),
        pytest.param(Wish("ollama", ("q8_0",)), "gguf", id="ollama"),
        *ROUNDED,
        ONNX,
    ],
)
def test_every_card_is_whole(tmp_path, wish, library) -> None:
    export(str(finished(tmp_path).path), tmp_path / "mine", wish)
    card = (tmp_path / "mine" / "README.md").read_text("utf-8")
    about = yaml.safe_load(card.split("---")[1])
    assert about["license"] == "mit"
    assert about["library_name"] == library
    assert about["base_model_relation"] == ("adapter" if "adapter" in wish.to else "finetune")
    for part in (
        "# mine", "A LoRA fine-tune (sft) of `base`", "## Use", "## Base model", "## Data", "1,200 records", "`ab12`",
        "## Training", "62 steps", "rank: 4", "## Results", "last training loss: 0.2500",
        "| test | exact_match | 0.85 | 0.78 to 0.9 | 150 |", "## Check", "on 20 prompts", "## Limits", "512 tokens",
        "## Licence", "its folder says: mit",
    ):  # fmt: skip
        assert part in card, part
    assert ("Its weights are rounded" in card) == (wish.to in ("gguf", "ollama") or wish.dtype is not None)
    assert str(tmp_path) not in card


def grown(path: Path, tied: bool) -> tuple[RunDir, int]:
    """A run that added two tokens, and how many rows its model has."""
    base = tiny_model_folder(path / "base", tie_word_embeddings=tied, initializer_range=0.2)
    settings = ModelConfig.model_validate(
        {"path": str(base), "new_tokens": ["<note>", "<end>"], "adapter": {"method": "lora"}}
    )
    run = RunDir.create(path / "runs", "first")
    run.write_config(yaml.safe_dump({"model": settings.model_dump(mode="json")}))
    run.write_run({"model": {"path": str(base), "folder": str(base)}})
    save_weights(load_model(base, settings), run.path, base, new=settings.added)
    return run, load_tokenizer(base).vocab_size + 2


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_new_tokens_come_back_from_gguf(tmp_path, tied) -> None:
    run, rows = grown(tmp_path, tied)
    report = export(str(run.path), tmp_path / "out", Wish("ollama", ("f32",)))
    assert all(check.passed for check in report.checks)
    path = tmp_path / "out" / "out-F32.gguf"
    reader = GGUFReader(path)
    names = {tensor.name: tuple(tensor.shape) for tensor in reader.tensors}
    assert names["token_embd.weight"][1] == rows
    assert ("output.weight" in names) is not tied
    assert reader.fields["tokenizer.ggml.tokens"].contents()[-2:] == ["<note>", "<end>"]
    if find_spec("llama_cpp") is not None:
        from llama_cpp import Llama  # pyright: ignore[reportMissingImports]

        words = Llama(str(path), vocab_only=True, verbose=False)
        wanted = load_tokenizer(tmp_path / "base", ("<note>", "<end>")).encode("a<note>b", specials=True)
        assert wanted[1] == rows - 2
        assert list(words.tokenize(b"a<note>b", add_bos=False, special=True)) == wanted


@pytest.mark.parametrize(("wish", "library"), [*ROUNDED, ONNX])
def test_new_tokens_come_back_from_other_forms(tmp_path, wish, library) -> None:
    run, rows = grown(tmp_path, tied=True)
    assert all(check.passed for check in export(str(run.path), tmp_path / "out", wish).checks)
    assert load_tokenizer(tmp_path / "out").encode("<note>", specials=True) == [rows - 2]
    assert json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))["vocab_size"] == rows
    if wish.to == "huggingface":
        stored = load_file(tmp_path / "out" / "model.safetensors")
        assert stored["model.embed_tokens.weight"].shape[0] == rows
        assert "lm_head.weight" not in stored
        assert stored["model.embed_tokens.weight"].dtype == torch.float32


def test_a_model_without_a_template_goes_to_ollama_without_one(tmp_path) -> None:
    folder = tiny_model_folder(tmp_path / "model", template=None)
    report = export(str(folder), tmp_path / "out", Wish("ollama", ("q8_0",)))
    assert [warning.code for warning in report.warnings] == ["W432"]
    assert "TEMPLATE" not in (tmp_path / "out" / "Modelfile").read_text("utf-8")
    assert "tokenizer.chat_template" not in GGUFReader(tmp_path / "out" / "out-Q8_0.gguf").fields


@pytest.mark.parametrize("form", ["gguf", "ollama"])
def test_an_unknown_architecture_is_refused_with_a_way_out(tmp_path, form) -> None:
    folder = tiny_model_folder(tmp_path / "model", "gpt_neox")
    with pytest.raises(ModelError, match=r"(?s)E431.*'gpt_neox'.*known: gemma.*tunesmith export MODEL OUT"):
        export(str(folder), tmp_path / "out", Wish(form))
    assert not (tmp_path / "out").exists()
