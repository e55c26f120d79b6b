"""Runs on a quantised base: resumed to the bit, opened again as they were, compared with the right reference."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests.records import write_records
from tests.tiny import tiny_model_folder
from torch import Tensor

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import ModelError
from tunesmith.export.huggingface import merge_run
from tunesmith.export.opening import Opened, find_model, load_source, reference_of
from tunesmith.export.proof import predictions
from tunesmith.models.reference import AdapterOff, OtherModel
from tunesmith.recipe import load_recipe
from tunesmith.run import execute
from tunesmith.track.progress import make_progress
from tunesmith.track.run_dir import RunDir

ROWS = [[5, 9, 12, 40, 7], [3, 3, 8]]
TRUNK = "train.cache_trunk=memory"
LOFTQ = ["model.adapter=loftq", "model.adapter.rounds=2"]


@pytest.fixture
def start(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    model = tiny_model_folder(tmp_path / "model")

    def run_in(name: str, method: str, kind: str, *words: str) -> RunDir:
        data = write_records(tmp_path / f"{kind}.jsonl", kind, 16)
        settings = [f"model.path={model}", f"data.train={data}", "train.sequences_per_step=4", "train.steps=4"]
        settings += ["train.checkpoint.every=2", "train.optimizer.lr=1e-2", "model.quantization=nf4"]
        recipe = load_recipe(method, [*settings, *words], {}).recipe
        path = tmp_path / "runs" / name
        run = RunDir(path) if path.exists() else RunDir.create(tmp_path / "runs", name)
        with make_progress(quiet=True) as progress:
            execute(recipe, run, Mesh(), progress)
        return run

    return run_in


def weights_of(run: RunDir) -> dict[str, Tensor]:
    return load_file(run.checkpoints / "step-4" / "weights.safetensors")


@pytest.mark.parametrize("words", [(), LOFTQ, ("model.adapter=dora",)], ids=["lora", "loftq", "dora"])
def test_a_resume_is_equal_to_the_bit_and_every_way_to_open_it_is_the_same_model(start, words):
    run = start("run", "sft", "sequence", *words)
    whole, final = weights_of(run), predictions(load_source(find_model(str(run.path))), ROWS)
    shutil.rmtree(run.checkpoints / "step-4")
    start("run", "sft", "sequence", *words)
    again = weights_of(run)
    assert whole.keys() == again.keys()
    assert [name for name in whole if not torch.equal(whole[name], again[name])] == []
    for opened in (find_model(str(run.path), "newest"), find_model(str(run.path / "adapter"))):
        torch.testing.assert_close(predictions(load_source(opened), ROWS), final, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("words", [(), LOFTQ], ids=["lora", "loftq"])
def test_a_preference_is_compared_with_the_model_at_the_start(start, words):
    run = start("run", "dpo", "pair", *words)
    first = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-5)
    source = find_model(str(run.path))
    model = load_source(source)
    reference = reference_of(Opened(model, load_tokenizer(source.base), source))
    assert isinstance(reference, OtherModel if words else AdapterOff)
    if words:  # the base below the adapter is not what training began as
        with model.disable_adapter():
            below = predictions(model, ROWS)
        assert (predictions(reference.model, ROWS) - below).abs().max() > 1e-4


@pytest.mark.parametrize("words", [(), LOFTQ], ids=["lora", "loftq"])
def test_a_run_that_goes_on_from_the_adapter_begins_where_it_ended(start, words):
    run = start("first", "sft", "sequence", *words)
    want = predictions(load_source(find_model(str(run.path))), ROWS)
    second = start("second", "sft", "sequence", f"model.adapter_path={run.path}/adapter", "train.optimizer.lr=1e-9")
    torch.testing.assert_close(predictions(load_source(find_model(str(second.path))), ROWS), want, atol=1e-5, rtol=0)
    assert (second.path / "adapter/loftq.safetensors").exists() == bool(words)


def test_a_merge_reports_its_error_and_loftqs_adapter_fits_no_other_base(start, tmp_path):
    run = start("run", "sft", "sequence", *LOFTQ)
    report = merge_run(run.path, tmp_path / "merged")
    assert 0 <= report.difference < 1e-5
    assert "quantization_config" not in json.loads((tmp_path / "merged/config.json").read_text())
    with pytest.raises(ModelError, match="E326"):
        start("other", "sft", "sequence", f"model.adapter_path={run.path}/adapter", "model.quantization=fp4")


def test_the_cached_frozen_layers_are_those_of_the_quantised_base(start):
    words = ("model.adapter.last=1",)
    plain, cached = start("plain", "sft", "sequence", *words), start("cached", "sft", "sequence", *words, TRUNK)
    ours, theirs = weights_of(cached), weights_of(plain)
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-4, rtol=1e-3)
