"""Runs in every precision: they learn, go on to the bit, and are planned and told as they are."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import tiny_model_folder

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import TunesmithError
from tunesmith.models.inventory import take_inventory, trainable
from tunesmith.planning.precision import bytes_per_parameter, precision_problems, told_precision
from tunesmith.recipe import load_recipe
from tunesmith.run import execute
from tunesmith.track.progress import make_progress
from tunesmith.track.run_dir import RunDir

BF16 = ("model.adapter=full", "model.dtype=bfloat16", "train.optimizer.lr=1e-3")
WAYS = {
    "stochastic": (*BF16, "train.optimizer.rounding=stochastic"),
    "kahan": (*BF16, "train.optimizer.rounding=kahan"),
    "stochastic in 8 bits": (*BF16, "train.optimizer.rounding=stochastic", "train.optimizer.name=adamw8bit"),
    "fp16": ("model.adapter=full", "model.dtype=float16", "train.optimizer.lr=1e-3", "train.loss_scale.every=3"),
    "fp16, layers in turns": (
        "model.adapter={method: lisa, layers: 1, every: 1}",
        "model.dtype=float16",
        "train.optimizer.lr=1e-4",
        "train.loss_scale.every=2",
    ),
    "stochastic, layers in turns": (
        "model.adapter={method: lisa, layers: 1, every: 1}",
        "model.dtype=bfloat16",
        "train.optimizer.lr=1e-4",
        "train.optimizer.rounding=stochastic",
    ),
    "fp16 with an adapter": ("model.dtype=float16", "train.loss_scale.initial=1024"),
    "kahan, averaged": (*BF16, "train.optimizer.rounding=kahan", "train.optimizer.name=schedule_free"),
}


@pytest.fixture
def start(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    model, data = tiny_model_folder(tmp_path / "model"), tmp_path / "data.jsonl"
    lines = [{"prompt": f"number {index}?", "completion": f"it is {index * 7}"} for index in range(12)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run_in(folder: str, *words: str) -> RunDir:
        settings = [f"model.path={model}", f"data.train={data}", f"data.eval={data}", "train.sequences_per_step=4"]
        settings += ["train.steps=4", "train.checkpoint.every=2", "train.evaluate_every=2"]
        settings += ["train.schedule.name=constant", "train.microbatch_tokens=64"]
        recipe = load_recipe(None, [*settings, *words], {}).recipe
        path = tmp_path / "runs" / folder
        run = RunDir(path) if path.exists() else RunDir.create(tmp_path / "runs", folder)
        with make_progress(quiet=True) as progress:
            execute(recipe, run, Mesh(), progress)
        return run

    return run_in


def files_of(run, *kinds):
    found = {}
    for kind in kinds:
        tensors = load_file(run.checkpoints / "step-4" / f"{kind}.safetensors")
        found |= {f"{kind} {name}": value for name, value in tensors.items()}
    return found


@pytest.mark.parametrize("words", WAYS.values(), ids=list(WAYS))
def test_a_run_goes_on_to_the_bit(start, words):
    run = start("run", *words)
    ended = files_of(run, "weights", "optimizer")
    kinds = {value.dtype for name, value in ended.items() if name.startswith("weights")}
    adapter = not any(word.startswith("model.adapter=") for word in words)
    assert kinds == {torch.float32 if adapter else torch.float16 if "model.dtype=float16" in words else torch.bfloat16}
    shutil.rmtree(run.checkpoints / "step-4")
    start("run", *words)
    again = files_of(run, "weights", "optimizer")
    assert ended.keys() == again.keys()
    assert [name for name in ended if not torch.equal(ended[name], again[name])] == []


@pytest.mark.parametrize(
    ("words", "told", "size"),
    [
        (("model.dtype=float32",), "fp32 weights: range of fp32, 24 bits in products; 16 bytes", 16),
        (("model.dtype=bfloat16",), "bf16 weights and fp32 masters: range of fp32, 8 bits in products; 18 bytes", 18),
        (("train.optimizer.rounding=kahan", "model.dtype=bfloat16"), "what rounding left (16 bits together)", 16),
        (("train.optimizer.rounding=stochastic", "model.dtype=bfloat16"), "alone, rounded by chance", 14),
        (("train.optimizer.in_backward=true", "train.clip_norm=0", "train.optimizer.rounding=stochastic",
          "model.dtype=bfloat16"), "10 bytes per trained parameter", 10),
        (("model.adapter=lora", "model.dtype=bfloat16"), "bf16 weights, fp32 adapters", 16),
    ],
)  # fmt: skip
def test_the_plan_tells_range_and_bytes(tmp_path, words, told, size):
    inventory = take_inventory(tiny_model_folder(tmp_path / "model"))
    recipe = load_recipe(None, ["model.adapter=full", "train.optimizer.lr=2e-5", *words], {}).recipe
    trained = trainable(inventory, recipe.model.adapter)
    given = recipe, inventory, trained, recipe.model.dtype
    assert told in told_precision(*given)
    assert bytes_per_parameter(*given) == size


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["model.dtype=float32", "model.adapter=full"], "W370"),
        (["model.dtype=bfloat16"], "W370"),
        (["model.dtype=bfloat16", "model.adapter=prompt"], "W370"),
        (["model.dtype=bfloat16", "model.adapter=bottleneck"], "W370"),
    ],
)
def test_a_rounding_that_does_nothing_is_told(tmp_path, words, code):
    inventory = take_inventory(tiny_model_folder(tmp_path / "model"))
    recipe = load_recipe(None, ["train.optimizer.rounding=kahan", *words], {}).recipe
    trained = trainable(inventory, recipe.model.adapter)
    (problem,) = precision_problems(recipe, inventory, trained, recipe.model.dtype)
    assert problem.code == code
    mended = load_recipe(None, [*words, "train.optimizer.rounding=masters"], {}).recipe
    assert problem.fixes[0].set == {"train.optimizer.rounding": "masters"}
    assert list(precision_problems(mended, inventory, trained, mended.model.dtype)) == []


def steps_of(run):
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("adapter", ["full", "{method: lisa, layers: 1, every: 1}"])
def test_steps_that_overflow_in_fp16_are_left_out_and_counted(start, adapter):
    """The scale falls from 2^32 at every step until gradients fit, also where layers take turns; none is unstable."""
    words = (f"model.adapter={adapter}", "model.dtype=float16", "train.optimizer.lr=1e-3", "train.steps=24")
    words += ("train.stability.on_nonfinite=stop", f"train.loss_scale.initial={2**32}", "train.loss_scale.every=2")
    run = start("run", *words)
    steps = [row for row in steps_of(run) if "train/loss_scale" in row]
    overflows = int(steps[-1]["train/overflows"])
    assert overflows >= 5
    assert [row["train/loss_scale"] for row in steps[:5]] == [2.0 ** (31 - step) for step in range(5)]
    assert steps[-1]["train/skipped"] == 0
    assert any(later["train/loss_scale"] > one["train/loss_scale"] for one, later in pairwise(steps))
    assert not (run.path / "bad_batches").exists() or not list((run.path / "bad_batches").iterdir())
    evaluated = [row["eval/loss"] for row in steps_of(run) if "eval/loss" in row]
    assert evaluated[-1] < evaluated[0]


def test_gemma_is_warned_of_and_updates_in_backward_are_refused(tmp_path):
    inventory = replace(take_inventory(tiny_model_folder(tmp_path / "model")), model_type="gemma2")
    recipe = load_recipe(None, ["model.dtype=float16", "model.adapter=full", "train.optimizer.lr=2e-5"], {}).recipe
    trained = trainable(inventory, recipe.model.adapter)
    (problem,) = precision_problems(recipe, inventory, trained, "float16")
    assert (problem.code, problem.level) == ("W371", "warning")
    assert list(precision_problems(recipe, inventory, trained, "bfloat16")) == []
    rounding = load_recipe(None, ["model.dtype=float16", "train.optimizer.rounding=kahan"], {}).recipe
    codes = [one.code for one in precision_problems(rounding, inventory, trained, "float16")]
    assert codes == ["W371", "E370"]
    with pytest.raises(TunesmithError) as caught:
        load_recipe(None, ["model.dtype=float16", "train.optimizer.in_backward=true", "train.clip_norm=0"], {})
    assert caught.value.diagnostic.code == "E371"
