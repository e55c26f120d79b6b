"""Whole tiny runs: early stopping, fixed prompts, refused resumes, bad numbers, vanished files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import tiny_model_folder

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import CheckpointError, DataError, NumericalError
from tunesmith.export.opening import open_model
from tunesmith.models.forward import base_model
from tunesmith.models.products import has_int8
from tunesmith.recipe import load_recipe
from tunesmith.run import execute
from tunesmith.track.progress import make_progress
from tunesmith.track.run_dir import RunDir


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


def write_data(path: Path, count: int = 12, word: str = "it is") -> Path:
    rows = [{"prompt": f"number {index}?", "completion": f"{word} {index * 7}"} for index in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def start(model: Path, data: Path, *settings: str, run: RunDir | None = None, accept: bool = False):
    words = [f"model.path={model}", f"data.train={data}", "train.sequences_per_step=4", "train.schedule=constant"]
    recipe = load_recipe(None, [*words, *settings], {}).recipe
    run = run or RunDir.create(data.parent / "runs")
    with make_progress(quiet=True) as progress:
        return run, execute(recipe, run, Mesh(), progress, accept_data_change=accept)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(run: RunDir) -> list[float]:
    return [row["train/loss"] for row in rows(run.metrics_file) if "train/loss" in row]


def test_a_run_learns_and_says_what_it_did(model, tmp_path):
    settings = ["train.epochs=6", "train.optimizer.lr=1e-2", "model.adapter=full"]
    run, result = start(model, write_data(tmp_path / "d.jsonl"), *settings)
    assert result.steps == 18
    assert result.last_loss < 0.7 * result.first_loss
    assert result.tokens == sum(row["train/tokens_per_step"] for row in rows(run.metrics_file))
    assert run.read_status().state == "finished"
    assert (run.path / "model" / "model.safetensors").exists()
    assert "step 18/18" in run.log_file.read_text()
    assert str((tmp_path / "d.jsonl").absolute()) in run.read_config()


def test_the_same_seed_gives_the_same_losses_to_the_bit(model, tmp_path):
    data = write_data(tmp_path / "d.jsonl")
    settings = ["train.epochs=2", "train.neftune_alpha=5", "model.adapter.dropout=0.1"]
    first, second, other = (start(model, data, *settings, f"train.seed={seed}")[0] for seed in (3, 3, 4))
    assert losses(first) == losses(second)
    assert losses(first) != losses(other)


def test_early_stopping_keeps_the_best_weights_and_stays_stopped(model, tmp_path):
    data, held_out = write_data(tmp_path / "d.jsonl"), write_data(tmp_path / "e.jsonl", 3, "not at all")
    settings = ["train.epochs=30", "train.optimizer.lr=1e-1", "train.evaluate_every=1", f"data.eval={held_out}"]
    settings += ["train.early_stopping.patience=2"]
    run, result = start(model, data, *settings)
    evaluations = {row["step"]: row["eval/loss"] for row in rows(run.metrics_file) if "eval/loss" in row}
    best = min(evaluations, key=lambda step: evaluations[step])
    assert result.steps == best + 2 < 90
    kept = load_file(run.checkpoints / f"step-{best}" / "weights.safetensors")
    written = load_file(run.path / "adapter" / "adapter_model.safetensors")
    name = next(key for key in written if "lora_B" in key)
    assert torch.equal(written[name], kept[name.replace(".weight", ".default.weight")])
    again, resumed = start(model, data, *settings, run=run)
    assert resumed.steps == result.steps
    assert len(losses(again)) == result.steps


@pytest.mark.parametrize("other", ["train.activation_checkpointing=full", "train.optimizer.in_backward=true"])
def test_a_resume_may_need_less_memory_and_is_the_same_to_the_bit(model, tmp_path, other):
    data = write_data(tmp_path / "d.jsonl")
    settings = ["train.epochs=2", "train.checkpoint.every=3", "model.adapter=full", "train.clip_norm=0"]
    run, _ = start(model, data, *settings)
    whole = losses(run)
    shutil.rmtree(run.checkpoints / "step-6")
    _, resumed = start(model, data, *settings, other, run=run)
    assert resumed.steps == 6
    assert losses(run)[-3:] == whole[-3:]


@pytest.mark.skipif(not has_int8("cpu"), reason="this processor has no 8-bit products")
@pytest.mark.parametrize("method", ["freeze", "lora"])
def test_what_products_in_8_bits_trained_goes_with_the_exact_weights(model, tmp_path, method):
    data = write_data(tmp_path / "d.jsonl")
    settings = [f"model.adapter.method={method}", "model.adapter.last=1", "model.base_products=int8"]
    run, _ = start(model, data, *settings, "train.activation_checkpointing=selective", "train.steps=2")
    before = load_file(model / "model.safetensors")
    opened = open_model(str(run.path)).model
    for name, parameter in base_model(opened).named_parameters():
        name = name.replace(".base_layer", "")
        if name in before and ("layers.1." not in name or method == "lora"):
            assert torch.equal(parameter, before[name]), name
    if method == "freeze":
        assert load_file(run.path / "model" / "model.safetensors").keys() == before.keys()


@pytest.mark.skipif(not has_int8("cpu"), reason="this processor has no 8-bit products")
def test_products_in_8_bits_change_losses_little_and_resume_to_the_bit(model, tmp_path):
    data = write_data(tmp_path / "d.jsonl")
    settings = ["train.epochs=2", "train.checkpoint.every=3", "train.optimizer.lr=1e-2"]
    (run, _), (exact, _) = (start(model, data, *settings, f"model.base_products={kind}") for kind in ("int8", "exact"))
    whole = losses(run)
    assert whole != losses(exact)
    assert whole == pytest.approx(losses(exact), rel=0.02)
    shutil.rmtree(run.checkpoints / "step-6")
    start(model, data, *settings, "model.base_products=int8", run=run)
    assert losses(run)[-3:] == whole[-3:]
    with pytest.raises(CheckpointError, match=r"model\.base_products"):
        start(model, data, *settings, run=run)


def test_fixed_prompts_are_answered_every_n_steps(model, tmp_path):
    settings = ["train.sample_every=2", "train.sample_prompts=[hello]", "train.steps=4"]
    run, _ = start(model, write_data(tmp_path / "d.jsonl"), *settings)
    answered = [(row["step"], row["prompt"]) for row in rows(run.completions_file)]
    assert answered == [(0, "hello"), (2, "hello"), (4, "hello")]


def test_resume_refuses_other_settings_and_names_them(model, tmp_path):
    data = write_data(tmp_path / "d.jsonl")
    run, _ = start(model, data)
    with pytest.raises(CheckpointError, match=r"train\.optimizer\.lr") as caught:
        start(model, data, "train.optimizer.lr=5e-3", run=run)
    assert caught.value.diagnostic.code == "E116"
    start(model, data, "train.checkpoint.every=1", run=run)


def test_d29_resume_refuses_changed_data_unless_told(model, tmp_path):
    data = write_data(tmp_path / "d.jsonl")
    run, _ = start(model, data)
    write_data(data, word="it was")
    with pytest.raises(CheckpointError, match="data hash"):
        start(model, data, run=run)
    start(model, data, run=run, accept=True)


def test_d30_a_file_deleted_after_preparation_does_not_matter_and_before_is_named(model, tmp_path):
    data = write_data(tmp_path / "d.jsonl")
    run, _ = start(model, data, "train.steps=2")
    data.unlink()
    with pytest.raises(DataError, match=r"d\.jsonl"):
        start(model, data, "train.steps=2", run=run)
    assert run.read_status().exit_code == 4


def test_n3_numbers_that_are_not_finite_stop_the_run_with_evidence(model, tmp_path):
    broken = tiny_model_folder(tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][:] = 3e38  # finite, which products with it are not
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    run = RunDir.create(tmp_path / "runs", "bad")
    with pytest.raises(NumericalError) as caught:
        start(broken, write_data(tmp_path / "d.jsonl"), run=run)
    assert caught.value.exit_code == 6
    assert len(list((run.path / "bad_batches").iterdir())) == 3
    evidence = json.loads((run.path / "bad_batches" / "step-1.json").read_text())
    assert evidence["records"]
    assert run.read_status().exit_code == 6


def test_a_run_without_a_checkpoint_goes_on_only_as_what_it_began(model, tmp_path):
    data = write_data(tmp_path / "d.jsonl")
    run, _ = start(model, data, "train.steps=1")
    shutil.rmtree(run.checkpoints)
    for change in ("model.adapter.rank=4", "data.train.0.weight=0.5", "data.train_on=all"):
        with pytest.raises(CheckpointError, match="E116"):
            start(model, data, "train.steps=1", change, run=run)


def test_a_damaged_cache_is_prepared_again(model, tmp_path):
    data = write_data(tmp_path / "d.jsonl")
    first, _ = start(model, data)
    (tokens,) = (tmp_path / "home" / "prepared").glob("*/tokens.bin")
    whole = tokens.read_bytes()
    for damage in (b"", whole[:-8]):
        tokens.write_bytes(damage)
        again, _ = start(model, data)
        assert losses(again) == losses(first)
    assert tokens.read_bytes() == whole


def test_bad_evaluation_data_is_told_before_training(model, tmp_path):
    run = RunDir.create(tmp_path / "runs", "early")
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        start(model, write_data(tmp_path / "d.jsonl"), f"evaluate.data={tmp_path}/missing.jsonl", run=run)
    assert not run.metrics_file.exists() or losses(run) == []


def test_checkpoints_come_by_time_as_well(model, tmp_path):
    run, _ = start(model, write_data(tmp_path / "d.jsonl"), "train.checkpoint.minutes=1e-9", "train.steps=3")
    saved = [row["step"] for row in rows(run.events_file) if row["event"] == "checkpoint"]
    assert saved == [1, 2, 3]
