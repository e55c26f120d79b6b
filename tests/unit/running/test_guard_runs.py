"""Runs with guards: what is logged of them, and a resume to the bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import tiny_model_folder

from tunesmith.distributed.mesh import Mesh
from tunesmith.recipe import load_recipe
from tunesmith.run import execute
from tunesmith.track.progress import make_progress
from tunesmith.track.run_dir import RunDir


@pytest.fixture
def start(tmp_path, monkeypatch) -> Callable[..., RunDir]:
    """Runs or resumes in a folder; six steps with a checkpoint after every third."""
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    model, data = tiny_model_folder(tmp_path / "model"), write_answers(tmp_path / "data.jsonl", 12)

    def run_in(folder: str, *words: str) -> RunDir:
        settings = [f"model.path={model}", f"data.train={data}", "train.sequences_per_step=4", "train.steps=6"]
        settings += ["train.checkpoint.every=3", "train.optimizer.lr=5e-3", *words]
        path = tmp_path / "runs" / folder
        run = RunDir(path) if path.exists() else RunDir.create(tmp_path / "runs", folder)
        with make_progress(quiet=True) as progress:
            execute(load_recipe(None, settings, {}).recipe, run, Mesh(), progress)
        return run

    return run_in


def write_answers(path: Path, count: int, word: str = "number") -> Path:
    lines = [{"prompt": f"{word} {index}?", "completion": f"it is {index * 7}"} for index in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def column(run: RunDir, name: str) -> list[float]:
    """A figure of every step, from the last attempt that took it."""
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return list({row["step"]: row[name] for row in rows if name in row}.values())


def everything(run: RunDir, step: int = 6) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, under the names of their files."""
    folder = run.checkpoints / f"step-{step}"
    return {
        f"{path.stem}/{name}": value
        for path in sorted(folder.rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def check_resume(start: Callable[..., RunDir], words: list[str], columns: tuple[str, ...]) -> RunDir:
    """A run that is taken up from its third step ends the same to the bit, with the same figures."""
    run = start("run", *words)
    straight, figures = everything(run), [column(run, name) for name in columns]
    assert all(figures)
    shutil.rmtree(run.checkpoints / "step-6")
    start("run", *words)
    again = everything(run)
    assert straight.keys() == again.keys()
    assert [key for key in straight if not torch.equal(straight[key], again[key])] == []
    assert [column(run, name) for name in columns] == figures
    return run


@pytest.mark.parametrize("rule", ["zscore", "percentile"])
def test_an_adaptive_limit_resumes_to_the_bit_and_its_share_is_told(start, rule):
    words = [
        "train.clip_norm=0",
        f"train.adaptive_clip={{rule: {rule}, warmup: 2, threshold: 0.3, decay: 0.2, percentile: 40}}",
    ]
    words += ["train.sequences_per_step=1", "train.optimizer.lr=0.1"]  # for norms that go up and down
    run = check_resume(start, words, ("train/clipped", "train/loss"))
    clipped = column(run, "train/clipped")
    assert 0 < clipped[-1] < 1
    assert start("free", "train.clip_norm=0").path != run.path
    assert everything(run).keys() == everything(RunDir(run.path.parent / "free")).keys()
    assert column(RunDir(run.path.parent / "free"), "train/clipped")[-1] == 0


def test_the_z_loss_is_told_apart_and_draws_log_z_to_0(start):
    run = check_resume(start, ["objective={name: sft, z_loss: 0.01}", "model.adapter=full"], ("train/z_loss",))
    spread = column(run, "train/z_loss")
    assert spread[-1] < spread[0]
    assert column(start("plain", "model.adapter=full"), "train/z_loss") == []


def test_general_data_is_mixed_in_and_its_loss_told_and_a_resume_is_exact(start, tmp_path):
    general = write_answers(tmp_path / "general.jsonl", 10, "general")
    words = [f"data.general.train={general}", "data.general.share=0.25", f"data.general.eval={general}"]
    words += ["train.evaluate_every=2"]
    run = check_resume(start, words, ("train/general_loss", "train/loss", "eval/general_loss"))
    assert len(column(run, "train/general_loss")) == 6
    held_out = column(run, "eval/general_loss")
    assert len(held_out) == 4  # before the first step, and after every second
    assert held_out[-1] < held_out[0]
    assert column(run, "train/epoch")[3] == 1.0  # twelve of its own and four general ones


def test_a_run_that_forgets_stops_and_keeps_what_still_knew(start, tmp_path):
    general = write_answers(tmp_path / "general.jsonl", 6, "quite another thing")
    text = general.read_text().replace("it is", "zebra xylophone")
    general.write_text(text)
    words = [f"data.general.eval={general}", "train.evaluate_every=1", "model.adapter=full", "train.optimizer.lr=0.02"]
    words += ["train.early_stopping={watch: general, max_rise: 0.0}", "train.schedule.warmup=2"]
    run = start("run", *words)
    losses = column(run, "eval/general_loss")
    over = next(step for step, loss in enumerate(losses) if loss > losses[0])
    assert len(losses) == over + 1 < 7
    assert "early_stop" in run.events_file.read_text()
    final = load_file(run.path / "model" / "model.safetensors")
    kept = load_file(run.checkpoints / f"step-{over - 1}" / "weights.safetensors") if over > 1 else None
    assert kept is None or all(torch.equal(final[name], value) for name, value in kept.items() if name in final)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_divergence_holds_a_run_near_its_start_and_resumes_to_the_bit(start, adapter):
    words = ["also=[{name: kl_to_reference, coefficient: 20}]", f"model.adapter={adapter}"]
    far = "loss/kl_to_reference"
    run = check_resume(start, words, (f"train/{far}", "train/loss"))
    held = column(run, f"train/{far}")
    assert held[0] == pytest.approx(0, abs=1e-6)
    assert held[-1] > 0
    loose = start("loose", "also=[{name: kl_to_reference, coefficient: 0.001}]", f"model.adapter={adapter}")
    assert held[-1] < 0.5 * column(loose, f"train/{far}")[-1]


@pytest.mark.parametrize("adapter", ["lora", "full", "ia3"])
def test_a_pull_holds_weights_near_their_start_and_resumes_to_the_bit(start, adapter):
    words = [f"model.adapter={adapter}", "train.optimizer.lr=0.01", "train.schedule={name: constant, warmup: 0}"]
    run = check_resume(start, [*words, "train.l2_to_start=40"], ("train/distance",))
    held = column(run, "train/distance")
    assert held[0] == 0
    free = column(start("free", *words, "train.l2_to_start=1.0e-9"), "train/distance")
    assert 0 < held[-1] < 0.9 * free[-1]


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_the_average_is_what_is_kept_and_a_resume_is_exact(start, adapter):
    words = [f"model.adapter={adapter}", "train.ema={decay: 0.5, ramp: false}"]
    run = check_resume(start, words, ("train/loss",))
    tensors = everything(run)
    kept = {name.removeprefix("weights/"): value for name, value in tensors.items() if name.startswith("weights/")}
    averages = {name: tensors[f"optimizer/{name}.average"] for name in kept}
    assert all(torch.equal(value, averages[name]) for name, value in kept.items())
    plain = everything(start("plain", f"model.adapter={adapter}"))
    name = next(name for name, value in kept.items() if value.ndim == 2 and value.abs().sum() > 0)
    assert torch.equal(plain[f"weights/{name}"], tensors[f"optimizer/{name}.master"])
    assert not torch.equal(plain[f"weights/{name}"], kept[name])


def test_layers_are_watched_without_changing_the_run(start):
    run = check_resume(start, ["train.watch_layers=2"], ("layers/000/grad_norm", "layers/001/update_ratio"))
    assert len(column(run, "layers/001/update_ratio")) == 3
    assert all(value > 0 for value in column(run, "layers/001/update_ratio"))
    plain = start("plain")
    assert column(plain, "train/loss") == column(run, "train/loss")
    norms = [column(run, f"layers/{place}/grad_norm")[0] for place in ("000", "001")]
    assert sum(norm**2 for norm in norms) ** 0.5 == pytest.approx(column(run, "train/grad_norm")[1], rel=1e-5)
