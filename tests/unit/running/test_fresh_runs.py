"""Runs that begin with a new model: trained, resumed and opened again as any other."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests.records import write_records
from tests.tiny import tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import CheckpointError
from tunesmith.export.opening import find_model, load_source, open_model
from tunesmith.models.content import content_hash
from tunesmith.models.fresh_config import ARCHITECTURES
from tunesmith.recipe import load_recipe
from tunesmith.run import execute
from tunesmith.track.progress import make_progress
from tunesmith.track.run_dir import RunDir

WORDS = [each.word for each in ARCHITECTURES]


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Runs or resumes the shipped recipe, made small, in a folder; six steps with a checkpoint after every third."""
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    data = write_records(tmp_path / "data.jsonl", "sequence", 24)

    def run_in(folder, *words):
        sizes = ["layers=2", "hidden=64", "heads=4", "kv_heads=2", "qk_norm=", "norms=auto", f"tokenizer={tokenizer}"]
        settings = [*(f"model.fresh.{size}" for size in sizes), f"data.train={data}", "train.sequences_per_step=4"]
        settings += ["train.steps=6", "train.checkpoint.every=3", "train.optimizer.lr=5e-3", *words]
        path = tmp_path / "runs" / folder
        run = RunDir(path) if path.exists() else RunDir.create(tmp_path / "runs", folder)
        recipe = str(run.config_file) if run.config_file.exists() else "from-scratch"
        with make_progress(quiet=True) as progress:
            execute(load_recipe(recipe, settings, {}).recipe, run, Mesh(), progress)
        return run

    return run_in


def losses(run):
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return list({row["step"]: row["train/loss"] for row in rows if "train/loss" in row}.values())


def checkpoint(run, step=6):
    return {
        f"{path.stem}/{name}": value
        for path in sorted((run.checkpoints / f"step-{step}").rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def check_equal(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("word", WORDS)
def test_it_learns_from_the_loss_of_a_guess_and_resumes_to_the_bit(start, word, tmp_path):
    run = start("run", f"model.fresh.architecture={word}")
    told = losses(run)
    assert told[0] == pytest.approx(math.log(400), abs=0.5)
    assert told[-1] < told[0] - 0.5
    straight = checkpoint(run)
    shutil.rmtree(run.checkpoints / "step-6")
    shutil.rmtree(tmp_path / "home" / "models")  # its first weights are drawn again
    start("run", f"model.fresh.architecture={word}")
    check_equal(straight, checkpoint(run))
    assert losses(run) == told


@pytest.mark.parametrize("word", WORDS)
def test_the_saved_folder_is_one_that_transformers_reads(start, word):
    run = start("run", f"model.fresh.architecture={word}")
    folder = run.path / "model"
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    assert type(theirs).__name__.lower().startswith(word)
    ours = load_source(find_model(str(run.path)))
    ids = AutoTokenizer.from_pretrained(folder)("hello the sea and the moon", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = theirs(ids).logits
    for name, value in checkpoint(run).items():
        if name.startswith("weights/"):
            assert torch.equal(theirs.get_parameter(name.removeprefix("weights/")), value)
    assert sum(each.numel() for each in ours.parameters()) == sum(each.numel() for each in theirs.parameters())
    theirs.save_pretrained(folder.parent / "again")
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(folder.parent / "again", attn_implementation="eager").eval()
        assert torch.equal(again(ids).logits, logits)


def test_two_runs_are_equal_and_a_seed_makes_another(start):
    one, other = start("one"), start("other")
    check_equal(checkpoint(one), checkpoint(other))
    assert losses(one) == losses(other)
    same_order = start("seeded", "model.fresh.seed=9")
    assert losses(same_order)[0] != losses(one)[0]


def test_a_resume_refuses_another_model(start, tmp_path):
    run = start("run")
    shutil.rmtree(run.checkpoints / "step-6")
    for word in ("model.fresh.std=0.01", "model.fresh.seed=3", "model.fresh.residual=plain"):
        with pytest.raises(CheckpointError) as caught:
            start("run", word)
        assert caught.value.diagnostic.code == "E116"
    start("run", "train.checkpoint.keep=3")
    moved = tiny_tokenizer(tmp_path / "moved")
    shutil.rmtree(run.checkpoints / "step-6")
    start("run", f"model.fresh.tokenizer={moved}")  # the same one at another place


def test_a_checkpoint_opens_when_its_first_weights_are_gone(start, tmp_path):
    run = start("run", "train.seed=5")
    shutil.rmtree(run.path / "model")
    about = run.read_run()["model"]
    assert about["path"] == "fresh-llama"
    shutil.rmtree(tmp_path / "home" / "models")
    opened = open_model(str(run.path))
    assert str(opened.source.base) == about["folder"]
    assert content_hash(opened.source.base) == about["hash"]
    kept = {name.removeprefix("weights/"): value for name, value in checkpoint(run).items() if "weights/" in name}
    held = dict(opened.model.named_parameters())
    assert all(torch.equal(held[name], value) for name, value in kept.items() if name in held)
    assert kept.keys() <= held.keys()


def test_texts_are_learned_whole(start, tmp_path):
    texts = tmp_path / "texts.jsonl"
    lines = ["the sea and the moon are here", "a poem about the fox", "hello, how are you today?", "the answer is 42"]
    texts.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    run = start("run", f"data.train={texts}", "train.steps=30", "train.checkpoint.every=0")
    assert losses(run)[-1] < 1.5
    rows = [json.loads(line) for line in run.events_file.read_text().splitlines()]
    finish = next(row for row in rows if "scored_tokens" in json.dumps(row))
    tokenizer = AutoTokenizer.from_pretrained(run.path / "model")
    words = sum(len(tokenizer(line).input_ids) for line in lines)
    assert f'"scored_tokens": {30 * words}' in json.dumps(finish)  # all but the first of each, and its end
