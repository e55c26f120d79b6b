"""Adapters trained above a base into which others are merged: planned, noted, opened again, refused."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from tests.records import write_records
from tests.tiny import tiny_model_folder

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import ModelError, TunesmithError
from tunesmith.export.huggingface import merge_run
from tunesmith.export.identity import weights_identity
from tunesmith.export.opening import find_model, load_source, load_start, open_model
from tunesmith.export.proof import predictions
from tunesmith.models.adapters import attach, load_adapter, merge, save_adapter, trainable
from tunesmith.models.config import DoraConfig, LoraConfig, ModelConfig
from tunesmith.models.inventory import take_inventory
from tunesmith.models.load import load_base
from tunesmith.models.reference import AdapterOff
from tunesmith.models.stack import STACK_FILE, stacked_hash
from tunesmith.plan import make_plan
from tunesmith.planning.adapters import adapter_problems
from tunesmith.recipe import Recipe, load_recipe
from tunesmith.run import execute
from tunesmith.track.progress import make_progress
from tunesmith.track.run_dir import RunDir

ROWS = [[5, 9, 200, 31], list(range(20, 60))]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base, two adapters for it, and records."""
    folder = tmp_path_factory.mktemp("stack")
    base = tiny_model_folder(folder / "base", initializer_range=0.2, tie_word_embeddings=False)
    for name, settings in (("a", LoraConfig(rank=4, alpha=4)), ("b", DoraConfig(rank=2, alpha=4))):
        model = attach(load_base(base, ModelConfig(path=str(base))), settings)
        torch.manual_seed(len(name))
        for parameter in trainable(model).values():
            parameter.data += 0.05 * torch.randn_like(parameter)
        save_adapter(model, folder / name, str(base))
    write_records(folder / "train.jsonl", "sequence", 16)
    return folder


def settings(place: Path, *more: str) -> list[str]:
    words = [
        f"model.path={place / 'base'}",
        f"data.train={place / 'train.jsonl'}",
        "train.steps=3",
        "train.checkpoint.every=1",
    ]
    return [*words, "train.sequences_per_step=4", "train.optimizer.lr=0.01", *more]


def stacked(place: Path, *names: str):
    """The base with adapters merged by hand, one after another."""
    model = load_base(place / "base", ModelConfig(path=str(place / "base")))
    for name in names:
        model = merge(load_adapter(model, place / name))
    return model.eval()


def trained(place: Path, folder: Path, *more: str, order: str = "ab") -> RunDir:
    """The run in `folder`, begun or gone on with."""
    names = ",".join(str(place / name) for name in order)
    words = settings(place, f"model.merged_adapters=[{names}]", *more)
    run = RunDir(folder / "r") if (folder / "r").exists() else RunDir.create(folder, "r")
    with make_progress(quiet=True) as progress:
        execute(load_recipe(None, words, {}).recipe, run, Mesh(), progress)
    return run


@pytest.fixture(scope="module")
def run(place, tmp_path_factory) -> RunDir:
    """With A and B merged below."""
    return trained(place, tmp_path_factory.mktemp("runs"))


def test_adapters_are_merged_one_after_another_as_the_model_is_loaded(place):
    names = tuple(str(place / name) for name in "ab")
    loaded = load_base(place / "base", ModelConfig(path=str(place / "base"), merged_adapters=names))
    want = predictions(stacked(place, "a", "b"), ROWS)
    assert torch.equal(predictions(loaded, ROWS), want)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    other = load_base(place / "base", ModelConfig(path=str(place / "base"), merged_adapters=names[::-1]))
    assert (predictions(other, ROWS) - want).abs().max() > 1e-4  # DoRA does not commute
    again = attach(loaded, LoraConfig(rank=2))
    assert list(again.peft_config) == ["default"]
    assert torch.equal(predictions(again, ROWS), want)


def test_a_run_is_noted_and_opened_as_it_was_trained(place, run, tmp_path):
    below = predictions(stacked(place, "a", "b"), ROWS)
    opened = open_model(str(run.path), dtype="float32")
    found = predictions(opened.model, ROWS)
    assert (found - below).abs().max() > 1e-3
    alone = open_model(str(run.path / "adapter"), dtype="float32")
    assert torch.equal(predictions(alone.model, ROWS), found)
    by_hand = load_adapter(stacked(place, "a", "b"), run.path / "adapter")
    assert torch.equal(predictions(by_hand, ROWS), found)
    with opened.model.disable_adapter():
        assert torch.equal(predictions(opened.model, ROWS), below)
    recorded = run.read_run()["merged_adapters"]
    assert [Path(each["folder"]).name for each in recorded] == ["a", "b"]
    assert json.loads((run.path / "adapter" / STACK_FILE).read_text())["merged_adapters"] == recorded


def test_peft_is_told_to_merge_first_and_then_agrees(place, run, tmp_path):
    text = (run.path / "adapter" / "README.md").read_text()
    assert f"tunesmith adapters merge {place / 'a'} {place / 'b'} {place / 'base'} OUT" in text
    stacked(place, "a", "b").save_pretrained(tmp_path / "below")
    below = load_base(tmp_path / "below", ModelConfig(path=str(tmp_path / "below")))
    theirs = peft.PeftModel.from_pretrained(below, str(run.path / "adapter")).eval()
    want = predictions(open_model(str(run.path), dtype="float32").model, ROWS)
    torch.testing.assert_close(predictions(theirs, ROWS), want, atol=1e-4, rtol=1e-4)


def test_merging_the_run_holds_everything(place, run, tmp_path):
    report = merge_run(run.path, tmp_path / "whole")
    assert report.difference <= report.limit
    want = predictions(open_model(str(run.path), dtype="float32").model, ROWS)
    merged = load_base(tmp_path / "whole", ModelConfig(path=str(tmp_path / "whole"), dtype="float32"))
    torch.testing.assert_close(predictions(merged, ROWS), want, atol=2e-4, rtol=2e-4)
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "`a`, `b` merged into it first" in card


def test_a_whole_model_trained_above_is_not_merged_twice(place, tmp_path):
    run = trained(place, tmp_path, "model.adapter=full")
    final = find_model(str(run.path))
    assert final.settings.merged_adapters == ()
    newest = predictions(load_source(find_model(str(run.path), "newest")), ROWS)
    assert torch.equal(predictions(load_source(final), ROWS), newest)
    start = load_start(run, final.settings)
    assert torch.equal(predictions(start, ROWS), predictions(stacked(place, "a", "b"), ROWS))


def test_a_resume_is_exact_to_the_bit(place, run, tmp_path):
    shutil.copytree(run.path, tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "adapter")
    shutil.rmtree(tmp_path / "r" / "checkpoints" / "step-3")
    again = trained(place, tmp_path)
    name = "adapter/adapter_model.safetensors"
    assert (again.path / name).read_bytes() == (run.path / name).read_bytes()


def test_the_reference_is_the_base_with_what_is_merged(place, run):
    opened = open_model(str(run.path), dtype="float32")
    names = opened.source.settings.merged_adapters
    assert isinstance(AdapterOff(opened.model), AdapterOff)
    base = place / "base"
    hashes = {stacked_hash(base, ()), stacked_hash(base, names), stacked_hash(base, names[::-1])}
    assert len(hashes) == 3
    assert weights_identity(opened.source)["base"] == stacked_hash(base, names)


def test_the_plan_names_them_and_counts_what_is_trained(place):
    words = settings(place, f"model.merged_adapters=[{place / 'a'}]")
    plan = make_plan(load_recipe(None, words, {}).recipe)
    assert plan.problems == () or all(problem.level != "error" for problem in plan.problems)
    assert plan.to_json()["merged_adapters"] == [str(place / "a")]
    alone = make_plan(load_recipe(None, settings(place), {}).recipe)
    assert plan.trained.total == alone.trained.total


def problems(place: Path, **changes):
    recipe = Recipe(model=ModelConfig(path=str(place / "base"), **changes))
    return list(adapter_problems(recipe, take_inventory(place / "base")))


def test_what_cannot_stand_there_is_refused_by_the_plan(place, run, tmp_path):
    (whole,) = problems(place, merged_adapters=(str(place / "base"),))
    assert (whole.code, whole.fixes[0].set["model.merged_adapters"]) == ("E364", [])
    other = tiny_model_folder(tmp_path / "wide", intermediate_size=96)
    recipe = Recipe(model=ModelConfig(path=str(other), merged_adapters=(str(place / "a"),)))
    (unfit,) = adapter_problems(recipe, take_inventory(other))
    assert unfit.code == "E363"
    adapter = str(run.path / "adapter")
    names = [str(place / "a"), str(place / "b")]
    (above,) = problems(place, adapter_path=adapter)
    assert (above.code, above.fixes[0].set) == ("E364", {"model.merged_adapters": names})
    assert problems(place, adapter_path=adapter, merged_adapters=tuple(names)) == []
    assert problems(place, adapter_path=names[0], merged_adapters=(names[1],))[0].code == "E364"
    (between,) = problems(place, merged_adapters=(names[0], adapter))
    assert between.fixes[0].set == {"model.merged_adapters": [*names, adapter]}
    assert problems(place, merged_adapters=(*names, adapter)) == []
    shutil.copytree(place / "a", tmp_path / "soft")
    config = tmp_path / "soft" / "adapter_config.json"
    config.write_text(config.read_text().replace('"LORA"', '"PROMPT_TUNING"'))
    assert [one.code for one in problems(place, merged_adapters=(str(tmp_path / "soft"),))] == ["E314"]


def test_what_has_changed_since_is_told(place, tmp_path):
    for name in "ab":
        shutil.copytree(place / name, tmp_path / name)
    shutil.copytree(place / "base", tmp_path / "base")
    shutil.copy(place / "train.jsonl", tmp_path / "train.jsonl")
    run = trained(tmp_path, tmp_path / "runs")
    shutil.copy(place / "b" / "adapter_model.safetensors", tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"E364.*other weights"):
        find_model(str(run.path))
    with pytest.raises(ModelError, match="E364"):
        find_model(str(run.path / "adapter"))
    with pytest.raises(TunesmithError, match="E116"):
        trained(tmp_path, tmp_path / "runs", order="b")
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(ModelError, match="not there any more"):
        find_model(str(run.path / "adapter"))
    (run.path / "adapter" / STACK_FILE).write_text('{"merged_adapters": [1]}')
    with pytest.raises(ModelError, match="E364"):
        find_model(str(run.path / "adapter"))


def test_rounds_of_whole_models_are_refused(place):
    words = settings(place, f"model.merged_adapters=[{place / 'a'}]", "online.label.rule=exact_match")
    with pytest.raises(TunesmithError, match="merged_adapters"):
        load_recipe("online_dpo", [*words, "model.adapter=full"], {})
