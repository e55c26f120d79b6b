"""Plans of new models: counted before they exist, and what is doubtful about their sizes."""

import json

import pytest
from tests.records import write_records
from tests.tiny import tiny_tokenizer

from tunesmith.cli.plan_view import plan_view
from tunesmith.errors import DataError, ModelError
from tunesmith.models.fresh import locate_start
from tunesmith.models.fresh_config import ARCHITECTURES
from tunesmith.models.inventory import take_inventory, trainable
from tunesmith.paths import home
from tunesmith.plan import make_plan
from tunesmith.planning.machine import Machine
from tunesmith.planning.problems import _smaller
from tunesmith.recipe import load_recipe

SMALL = ["layers=2", "hidden=64", "heads=4", "kv_heads=2"]


@pytest.fixture
def recipe_of(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    data = write_records(tmp_path / "data.jsonl", "sequence", 24)

    def make(*words, sizes=SMALL):
        settings = [f"model.fresh.{size}" for size in (*sizes, f"tokenizer={tokenizer}")]
        settings += [f"data.train={data}", "train.sequences_per_step=4"]
        return load_recipe("from-scratch", [*settings, *words], {}).recipe

    return make


def codes(plan):
    return {problem.code for problem in plan.problems}


def printed(plan):
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as capture:
        console.print(plan_view(plan))
    return capture.get()


@pytest.mark.parametrize("word", [each.word for each in ARCHITECTURES])
def test_a_plan_counts_the_model_exactly_and_writes_no_weight(recipe_of, word):
    recipe = recipe_of(f"model.fresh.architecture={word}", "model.fresh.qk_norm=", "model.fresh.norms=auto")
    plan = make_plan(recipe)
    assert not list(home().rglob("*.safetensors"))
    built = take_inventory(locate_start(recipe.model, recipe.train.seed))
    assert plan.inventory.tensors == built.tensors
    assert plan.trained == trainable(built, recipe.model.adapter)
    assert plan.trained.total == plan.inventory.total == plan.to_json()["parameters"]["trainable"]
    assert plan.memory.to_json()["weights"] == 4 * built.total


def test_a_model_larger_than_the_machine_is_planned_and_refused_in_no_time(recipe_of):
    sizes = ["layers=80", "hidden=8192", "heads=64", "kv_heads=8", "intermediate=28672"]
    machine = Machine("cpu", "machine", 2, 2, 16_000_000_000, 16_000_000_000)
    plan = make_plan(recipe_of(sizes=sizes), machine=machine)
    layer = 8192 * (8192 + 2 * 1024 + 8192 + 3 * 28672) + 2 * 8192 + 2 * 128  # q, k and v, o, MLP; norms
    assert plan.inventory.total == 80 * layer + 2 * 400 * 8192 + 8192
    assert not plan.fits
    (error,) = [problem for problem in plan.problems if problem.code == "E180"]
    assert not any("lora" in str(fix.set) for fix in error.fixes)


def test_what_cannot_be_tuned_in_part_is_not_proposed(recipe_of):
    assert {"model.adapter": "lora"} not in [
        {key: value for key, value in change.items() if key == "model.adapter"}
        for change in _smaller(recipe_of(), "cpu")
    ]


def test_the_plan_says_what_the_model_is_and_how_it_begins(recipe_of):
    told = printed(make_plan(recipe_of("train.seed=17")))
    assert "new qwen3" in told
    assert "qwen3: 2 layers of 64, 4 heads on 2 of 16, MLP 192" in told
    assert "a deviation of 0.07906, what layers add / sqrt(4), a residual stream of variance 1; seed 17" in told
    told = printed(make_plan(recipe_of("model.fresh.residual=plain", "model.fresh.embedding=plain")))
    assert "normal with a deviation of 0.07906; seed 0" in told


def test_few_texts_for_many_parameters_are_told(recipe_of, tmp_path):
    plan = make_plan(recipe_of())
    (problem,) = [problem for problem in plan.problems if problem.code == "W390"]
    assert f"for {plan.inventory.total:,} parameters" in problem.message
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "the sea and the moon " * 2000}) + "\n")
    smallest = ["layers=1", "hidden=8", "heads=2", "kv_heads=1", "intermediate=8"]
    enough = make_plan(recipe_of(f"data.train={texts}", sizes=smallest))
    assert "W390" not in codes(enough)


def test_a_vocabulary_that_is_most_of_the_model_is_told(recipe_of):
    narrow = ["layers=1", "hidden=16", "heads=2", "kv_heads=2", "intermediate=16"]
    plan = make_plan(recipe_of(sizes=narrow))
    (problem,) = [problem for problem in plan.problems if problem.code == "W391"]
    taken = 2 * 400 * 16 / plan.inventory.total
    assert f"400 tokens of the vocabulary take {taken:.0%}" in problem.message
    ties = [f"{key}={str(value).lower()}" for key, value in problem.fixes[0].set.items()]
    tied = make_plan(recipe_of(*ties, sizes=narrow))
    assert tied.inventory.total == plan.inventory.total - 400 * 16
    assert "W391" not in codes(make_plan(recipe_of()))


@pytest.mark.parametrize(("rate", "is_told"), [("1e-3", False), ("3e-5", False), ("1e-6", True), ("0.05", True)])
def test_rates_are_judged_as_those_of_a_new_model(recipe_of, rate, is_told):
    plan = make_plan(recipe_of(f"train.optimizer.lr={rate}"))
    found = [problem for problem in plan.problems if problem.code == "W183"]
    assert bool(found) == is_told
    assert all("usual for a new model" in problem.evidence[0] for problem in found)


def test_data_that_is_not_there_is_told_first(recipe_of, tmp_path):
    missing, empty = tmp_path / "missing.jsonl", tmp_path / "empty"
    with pytest.raises(DataError):
        make_plan(recipe_of(f"data.train={missing}", "model.fresh.tokenizer=nowhere"))
    empty.mkdir()
    with pytest.raises(ModelError) as caught:
        make_plan(recipe_of(f"model.fresh.tokenizer={empty}"))
    assert caught.value.diagnostic.code == "E396"
