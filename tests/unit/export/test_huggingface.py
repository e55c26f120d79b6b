import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tests.tiny import tiny_model_folder

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import BadInput, CheckpointError, ModelError, UsageError
from tunesmith.export import huggingface
from tunesmith.export.huggingface import merge_run
from tunesmith.export.opening import find_model, load_source, open_model
from tunesmith.export.proof import divergence, predictions
from tunesmith.models.adapters import attach, save_adapter, trainable
from tunesmith.models.config import FullConfig, LoraConfig, ModelConfig
from tunesmith.models.load import load_base
from tunesmith.models.save import save_weights
from tunesmith.rollout.generator import Sampling, generate
from tunesmith.track.run_dir import RunDir
from tunesmith.train.checkpoint import CheckpointStore

ROWS = [[5, 9, 200, 31], list(range(20, 60))]
DATA = {"hash": "ab12", "records": 1200, "examples": 1190, "tokens": 45_000, "trained_tokens": 9_000}


def base_folder(path: Path) -> Path:
    return tiny_model_folder(path / "base", tie_word_embeddings=False, initializer_range=0.2)


def trained(base: Path, adapter=None, seed: int = 1):
    """The model of a finished run: its trainable tensors have moved."""
    model = attach(load_base(base, ModelConfig(path=str(base))), adapter or LoraConfig(rank=4))
    torch.manual_seed(seed)
    for parameter in trainable(model).values():
        parameter.data += 0.03 * torch.randn_like(parameter)
    return model.eval()


def make_run(path: Path, base: Path, method: dict | None = None) -> RunDir:
    run = RunDir.create(path / "runs", "first")
    model = {"path": str(base), "adapter": method or {"method": "lora", "rank": 4}}
    data = {"train": [{"path": "/secret/place/notes.jsonl"}], "max_length": 512}
    run.write_config(yaml.safe_dump({"model": model, "data": data, "objective": {"name": "sft"}}))
    run.write_run({"model": {"path": str(base), "folder": str(base)}, "data": DATA})
    return run


def write_results(run: RunDir) -> None:
    score = {"value": 0.85, "low": 0.78, "high": 0.9, "n": 150}
    rows = [
        {"event": "finish", "steps": 62, "tokens": 48_123, "first_loss": 2.5, "last_loss": 0.25, "seconds": 100.0},
        {"event": "evaluation", "scores": {"test": {"exact_match": score}}},
    ]
    run.events_file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_model_predicts_what_the_adapter_predicts(tmp_path: Path, dtype: str) -> None:
    base = base_folder(tmp_path)
    if dtype == "bfloat16":
        load_base(base, ModelConfig(path=str(base))).to(torch.bfloat16).save_pretrained(base)
    model = trained(base)
    run = make_run(tmp_path, base)
    save_weights(model, run.path, base)
    report = merge_run(run.path, tmp_path / "out" / "merged")
    merged = load_base(tmp_path / "out" / "merged", ModelConfig(path=str(tmp_path / "out" / "merged")))
    assert merged.dtype == getattr(torch, dtype)
    wanted, found = predictions(model.float(), ROWS), predictions(merged.float(), ROWS)
    plain = predictions(load_base(base, ModelConfig(path=str(base), dtype="float32")), ROWS)
    assert divergence(wanted, found) < 1e-2 * divergence(wanted, plain)
    if dtype == "float32":
        assert torch.allclose(wanted, found, atol=1e-4)
    assert report.difference <= report.limit
    assert report.dtype == dtype
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["merged"]


def test_folder_holds_all_that_chat_needs_and_no_trace_of_our_attention(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    run = make_run(tmp_path, base)
    save_weights(trained(base), run.path, base)
    out = tmp_path / "merged"
    merge_run(str(run.path), out)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    assert "tunesmith" not in (out / "config.json").read_text("utf-8")
    assert load_tokenizer(out).eos_ids == (2,)
    opened, unmerged = open_model(str(out)), open_model(str(run.path))
    answer = generate(opened.model, opened.tokenizer, ROWS, Sampling(12))
    assert answer == generate(unmerged.model, unmerged.tokenizer, ROWS, Sampling(12))


def test_card_tells_base_data_recipe_results_and_licence(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    run = make_run(tmp_path, base)
    save_weights(trained(base), run.path, base)
    write_results(run)
    merge_run(run.path, tmp_path / "my-model")
    card = (tmp_path / "my-model" / "README.md").read_text("utf-8")
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "base"
    for part in (
        "# my-model", "A LoRA fine-tune (sft) of `base`", "`notes.jsonl`", "1,200 records", "9,000 of them in the loss",
        "62 steps, 48,123 tokens", "rank: 4", "data.max_length: `512`", "last training loss: 0.2500",
        "| test | exact_match | 0.85 | 0.78 to 0.9 | 150 |", "licence of `base`", "Weights in float32",
    ):  # fmt: skip
        assert part in card
    assert "/secret" not in card
    assert str(tmp_path) not in card


def test_full_fine_tune_is_exported_too(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    model = trained(base, FullConfig())
    run = make_run(tmp_path, base, {"method": "full"})
    save_weights(model, run.path, base)
    merge_run(run.path, tmp_path / "out")
    out = load_base(tmp_path / "out", ModelConfig(path=str(tmp_path / "out")))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in out.state_dict().items())


def test_plain_peft_folder(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    model = trained(base)
    save_adapter(model, tmp_path / "adapter", str(base))
    merge_run(tmp_path / "adapter", tmp_path / "out")
    merged = load_base(tmp_path / "out", ModelConfig(path=str(tmp_path / "out")))
    assert torch.allclose(predictions(model, ROWS), predictions(merged, ROWS), atol=1e-4)
    assert "## Training" not in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_trained_head_of_a_tied_model_is_kept(tmp_path: Path) -> None:
    base = tiny_model_folder(tmp_path / "base", tie_word_embeddings=True)
    model = trained(base, LoraConfig(rank=2, targets=("q_proj",), modules_to_save=("lm_head",)))
    save_adapter(model, tmp_path / "adapter", str(base))
    merge_run(tmp_path / "adapter", tmp_path / "out")
    merged = load_base(tmp_path / "out", ModelConfig(path=str(tmp_path / "out")))
    assert torch.allclose(predictions(model, ROWS), predictions(merged, ROWS), atol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("targets", [("all",), ("embed_tokens",)], ids=str)
def test_weights_that_are_not_finite_are_refused_and_leave_nothing(tmp_path: Path, bad: float, targets) -> None:
    base = base_folder(tmp_path)
    run = make_run(tmp_path, base)
    save_weights(trained(base, LoraConfig(rank=4, targets=targets)), run.path, base)
    path = run.path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = bad
    save_file(tensors, path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ModelError, match="E511"):
        merge_run(run.path, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_non_finite_base_weight_that_no_adapter_touches(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    save_adapter(trained(base), tmp_path / "adapter", str(base))
    tensors = load_file(base / "model.safetensors")
    tensors["model.embed_tokens.weight"][399 % len(tensors["model.embed_tokens.weight"]), 0] = float("nan")
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="embed_tokens"):
        merge_run(tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapters_on_embeddings_are_merged_too(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    model = trained(base, LoraConfig(rank=4, targets=("embed_tokens", "q_proj")))
    save_adapter(model, tmp_path / "adapter", str(base))
    merge_run(tmp_path / "adapter", tmp_path / "out")
    merged = load_base(tmp_path / "out", ModelConfig(path=str(tmp_path / "out")))
    assert torch.allclose(predictions(model, ROWS), predictions(merged, ROWS), atol=1e-4)


def test_a_merge_that_loses_the_adapter_is_refused(tmp_path: Path, monkeypatch) -> None:
    base = base_folder(tmp_path)
    save_adapter(trained(base), tmp_path / "adapter", str(base))
    monkeypatch.setattr(huggingface, "merge", lambda model: model.unload())
    with pytest.raises(ModelError, match="E156"):
        merge_run(tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_taken_place_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    run = make_run(tmp_path, base)
    save_weights(trained(base), run.path, base)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="E157"):
        merge_run(run.path, tmp_path / "out")
    with pytest.raises(UsageError, match="nothing to merge"):
        merge_run(base, tmp_path / "other")
    (tmp_path / "empty").mkdir()
    merge_run(run.path, tmp_path / "empty")


def test_unfinished_run_opens_at_its_newest_checkpoint(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    run = make_run(tmp_path, base)
    with pytest.raises(CheckpointError, match="E155"):
        find_model(str(run.path))
    models = {step: trained(base, seed=step) for step in (3, 6)}
    store = CheckpointStore(run.checkpoints)
    for step, model in models.items():
        weights = {name: parameter.detach() for name, parameter in trainable(model).items()}
        store.save(step, {"weights": weights}, {}, best=step == 3)
    for which, step in (("auto", 6), ("newest", 6), ("best", 3)):
        found = find_model(str(run.path), which)
        assert torch.equal(predictions(load_source(found), ROWS), predictions(models[step], ROWS))
    with pytest.raises(CheckpointError, match="final weights"):
        find_model(str(run.path), "final")
    merge_run(run.path, tmp_path / "out", which="best")
    assert "step 3" in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_adapter_without_a_base_is_told(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    save_adapter(trained(base), tmp_path / "adapter", "")
    with pytest.raises(BadInput, match="E154"):
        find_model(str(tmp_path / "adapter"))
