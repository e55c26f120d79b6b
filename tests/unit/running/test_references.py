"""References in whole tiny runs: the right model, computed once, never another one's figures."""

import json
import math
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.records import write_records
from tests.tiny import tiny_model_folder, tiny_tokenizer

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import CheckpointError, ModelError
from tunesmith.models import reference
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


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """The same shape with other weights."""
    return tiny_model_folder(tmp_path_factory.mktemp("other"), seed=1)


def train(folder: Path, model: Path, *settings: str) -> tuple[RunDir, float]:
    """A run of DPO on twelve pairs, and its first loss."""
    pairs = write_records(folder / "pairs.jsonl", "pair", 12)
    words = [f"model.path={model}", f"data.train={pairs}", "objective=dpo", "train.sequences_per_step=4"]
    recipe = load_recipe(None, [*words, "train.optimizer.lr=1e-2", *settings], {}).recipe
    run = RunDir.create(folder / "runs")
    with make_progress(quiet=True) as progress:
        result = execute(recipe, run, Mesh(), progress)
    assert result.first_loss is not None
    return run, result.first_loss


def losses(run: RunDir) -> list[float]:
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def told(run: RunDir) -> str:
    rows = [json.loads(line) for line in run.events_file.read_text().splitlines()]
    return next(row["message"] for row in rows if row["event"] == "start")


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """How many tokens each reference forward pass scores."""
    seen: list[int] = []
    score = reference.score_only

    def counted(model, batch):
        seen.append(len(batch.target))
        return score(model, batch)

    monkeypatch.setattr(reference, "score_only", counted)
    return seen


@pytest.mark.parametrize("method", ["lora", "full", "freeze"])
def test_the_first_loss_is_ln_2_whatever_is_trained(model, tmp_path, method):
    extra = ["model.adapter.last=1"] if method == "freeze" else []
    run, first = train(tmp_path, model, f"model.adapter.method={method}", *extra)
    assert first == pytest.approx(math.log(2), abs=1e-6)
    assert "policy and reference agree at the start" in told(run)


def test_from_an_adapter_the_reference_is_the_model_as_loaded(model, tmp_path):
    began, _ = train(tmp_path, model)
    adapter = f"model.adapter_path={began.path / 'adapter'}"
    _, first = train(tmp_path, model, adapter)
    assert first == pytest.approx(math.log(2), abs=1e-6)
    run, first = train(tmp_path, model, adapter, "model.reference.source=adapter_off")
    assert abs(first - math.log(2)) > 1e-4
    assert "another model" in told(run)


def test_dropout_of_the_adapter_one_starts_from_is_switched_off(model, tmp_path):
    chats = write_records(tmp_path / "chats.jsonl", "sequence", 8)
    noisy = ["objective=sft", f"data.train={chats}", "model.adapter.dropout=0.3"]
    began, _ = train(tmp_path, model, *noisy)
    for objective in ("dpo", "rpo", "orpo"):
        run, _ = train(tmp_path, model, f"model.adapter_path={began.path / 'adapter'}", f"objective={objective}")
        assert "dropout in 14 layers is switched off" in run.log_file.read_text()
        if objective != "orpo":
            assert "agree at the start" in told(run)


def test_another_adapter_or_reference_is_no_resume(model, other, tmp_path):
    began, _ = train(tmp_path, model)
    path = began.path / "adapter"
    run, _ = train(tmp_path, model, f"model.adapter_path={path}", f"model.reference.path={other}")
    tensors = load_file(path / "adapter_model.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, path / "adapter_model.safetensors")
    recipe = load_recipe(str(run.config_file), [], {}).recipe
    with pytest.raises(CheckpointError) as caught, make_progress(quiet=True) as progress:
        execute(recipe, run, Mesh(), progress)
    assert caught.value.diagnostic.code == "E116"
    assert any("adapter hash" in line for line in caught.value.diagnostic.evidence)


def test_held_out_data_is_measured_with_what_the_objective_remembers(model, tmp_path):
    held_out = write_records(tmp_path / "held_out.jsonl", "pair", 4, seed=1)
    run, _ = train(tmp_path, model, "objective=bco", "objective.decay=0.5", f"data.eval={held_out}", "train.epochs=3")
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    shifts = [row["eval/bco/shift"] for row in rows if "eval/bco/shift" in row]
    assert shifts[-1] != 0.0


def test_pairs_are_measured_after_training_against_the_reference(model, tmp_path):
    held_out = write_records(tmp_path / "test.jsonl", "pair", 6, seed=1)
    run, _ = train(tmp_path, model, f"evaluate.data={held_out}")
    rows = [json.loads(line) for line in run.events_file.read_text().splitlines()]
    scores = next(row["scores"]["test"] for row in rows if row["event"] == "evaluation")
    assert scores["accuracy"]["n"] == scores["reward_accuracy"]["n"] == 6
    assert len((run.path / "answers.jsonl").read_text().splitlines()) == 6


def test_models_of_one_shape_never_share_figures(model, other, tmp_path):
    for one in (model, other, model):
        _, first = train(tmp_path, one, "model.adapter=full")
        assert first == pytest.approx(math.log(2), abs=1e-6)
    beside = [train(tmp_path, model, f"model.reference.path={one}")[1] for one in (other, model)]
    assert abs(beside[0] - math.log(2)) > 1e-4
    assert beside[1] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_later_epochs_and_other_betas_compute_no_reference(model, tmp_path, asked, method):
    settings = [f"model.adapter={method}", "train.epochs=3"]
    run, _ = train(tmp_path, model, *settings)
    once = sum(asked)
    assert once == sum(int(row) for row in scored_tokens(run))
    asked.clear()
    again, _ = train(tmp_path, model, *settings, "objective.beta=0.3")
    assert asked == []
    same, _ = train(tmp_path, model, *settings)
    assert losses(same) == losses(run) != losses(again)


def scored_tokens(run: RunDir) -> list[float]:
    """Of the steps of the first epoch."""
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return [row["train/scored_per_step"] for row in rows if row.get("train/epoch", 2) <= 1]


def test_a_moving_reference_follows_the_policy(model, tmp_path):
    settings = ["model.adapter=full", "train.epochs=2", "model.reference.update_every=2"]
    settings.append("model.reference.update_mix=1")
    moving, _ = train(tmp_path, model, *settings)
    still, _ = train(tmp_path, model, *settings[:2])
    assert losses(moving)[:2] == pytest.approx(losses(still)[:2], abs=1e-6)
    assert losses(moving)[2] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(losses(still)[2] - math.log(2)) > 1e-3


def test_a_reference_of_another_vocabulary_is_refused(model, tmp_path):
    strange = tiny_model_folder(tmp_path / "strange")
    tiny_tokenizer(strange, vocabulary=300)
    with pytest.raises(ModelError) as caught:
        train(tmp_path, model, f"model.reference.path={strange}")
    assert caught.value.diagnostic.code == "E282"
    assert caught.value.diagnostic.fixes


def test_an_objective_without_a_reference_computes_none(model, tmp_path, asked):
    train(tmp_path, model, "objective=simpo")
    assert asked == []


def test_several_objectives_share_one_forward(model, tmp_path):
    recipe = tmp_path / "mix.yaml"
    recipe.write_text("objective:\n  - name: dpo\n  - name: sft\n    coefficient: 0.5\n")
    pairs = write_records(tmp_path / "pairs.jsonl", "pair", 12)
    loaded = load_recipe(str(recipe), [f"model.path={model}", f"data.train={pairs}", "train.steps=2"], {}).recipe
    assert [one.title for one in loaded.objectives] == ["dpo", "sft"]
    run = RunDir.create(tmp_path / "runs")
    with make_progress(quiet=True) as progress:
        execute(loaded, run, Mesh(), progress)
    row = json.loads(run.metrics_file.read_text().splitlines()[0])
    assert row["train/loss/dpo"] == pytest.approx(math.log(2), abs=1e-6)
    assert row["train/loss"] == pytest.approx(row["train/loss/dpo"] + 0.5 * row["train/loss/sft"], rel=1e-6)
