"""N8: a bit that flips in the weights of one rank is found, and the rank named; ranks that agree raise no alarm."""

import json

import pytest
import torch
from tests.distributed.crew import evidence_of, launch, surroundings, training

from tunesmith.recipe import Recipe
from tunesmith.track.reader import read_lines, read_metrics
from tunesmith.train.checkpoint import CheckpointStore
from tunesmith.train.replicas import NOTE, as_bits, fingerprint, odd_ones

pytestmark = pytest.mark.row("N8")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    with surroundings(folder) as recipe:
        yield folder, recipe


def checking(recipe: Recipe, every: int, **train: object) -> Recipe:
    stability = recipe.train.stability.model_copy(update={"replica_check_every": every})
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"stability": stability, **train})})


def flip(rank: int, step: int, name: str, trace: object) -> str:
    where = f"train.weights@step={step}@rank={rank}"
    return f"{where}:trace:{trace}; {where}:flip:{name}"


def test_n08_the_rank_whose_frozen_weight_changed_is_named(place, evidence):
    folder, recipe = place
    run, trace = folder / "frozen", folder / "frozen.trace"
    armed = flip(1, 5, "layers.1.mlp.down_proj", trace)
    ended = launch(folder / "l-frozen", training(checking(recipe, 1), run, armed)).run()
    assert trace.read_text() == "train.weights 5 -\n", "no bit was flipped"
    assert (ended.code, ended.error.diagnostic.code) == (6, "E532")
    assert "step 5: rank 1 holds other weights than the run had so far: " in str(ended.error)
    assert "layers.1.mlp.down_proj" in str(ended.error)
    assert "1 of 8,192 numbers differ; number 4,096 is" in evidence_of(ended)
    assert CheckpointStore(run / "checkpoints").newest().step == 4
    evidence("N8", claim="one flipped bit of a frozen weight: rank and weight named", figure="in the step it flipped")


@pytest.mark.nightly
def test_n08_two_ranks_that_differ_in_what_they_train_are_told_apart_by_computing_it_again(place):
    folder, recipe = place
    whole, run, trace = folder / "whole", folder / "trained", folder / "trained.trace"
    assert launch(folder / "l-whole", training(checking(recipe, 1), whole)).run().code == 0
    armed = flip(1, 5, "lora_A", trace)
    seldom = checking(recipe, 7)
    ended = launch(folder / "l-trained", training(seldom, run, armed)).run()
    assert trace.exists(), "no bit was flipped"
    assert (ended.code, ended.error.diagnostic.code) == (6, "E532")
    assert "step 6: ranks 0, 1 hold different weights" in str(ended.error), "the save of step 6 looks"
    assert CheckpointStore(run / "checkpoints").newest().step == 4
    assert json.loads((run / NOTE).read_text())["step"] == 6
    assert launch(folder / "l-judged", training(seldom, run)).run().code == 0
    (told,) = [row for row in read_lines(run / "events.jsonl") if row.get("code") == "W520"]
    assert told["message"] == "step 6 was computed again: rank 1 held wrong weights there before"
    assert not (run / NOTE).exists()
    assert losses(run) == losses(whole)
    assert not [row for row in read_lines(whole / "events.jsonl") if row.get("code") == "W520"]


def test_n08_of_three_ranks_the_one_that_is_alone_is_named(place):
    folder, recipe = place
    armed = flip(2, 3, "lora_A", folder / "three.trace")
    work = training(checking(recipe, 1), folder / "three", armed)
    ended = launch(folder / "l-three", work, ranks=3).run()
    assert (folder / "three.trace").exists(), "no bit was flipped"
    assert (ended.code, ended.error.diagnostic.code) == (6, "E532")
    assert "step 3: rank 2 holds other weights" in str(ended.error)


@pytest.mark.nightly
def test_n08_two_hundred_steps_of_agreeing_ranks_raise_no_alarm(place, evidence):
    folder, recipe = place
    settings = checking(recipe, 1, steps=200)
    ended = launch(folder / "l-calm", training(settings, folder / "calm")).run()
    assert ended.code == 0, ended.error
    assert len(losses(folder / "calm")) == 200
    evidence("N8", claim="comparisons of two ranks that agree, false alarms", figure="200, none")


def losses(run) -> list[float]:
    return [row["train/loss"] for row in read_metrics(run / "metrics.jsonl") if "train/loss" in row]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float64])
def test_n08_every_single_bit_counts(dtype):
    tensor = torch.linspace(-2, 2, 37).to(dtype)
    before = int(fingerprint(tensor))
    for place in (0, 17, 36):
        for bit in range(8 * tensor.element_size()):
            bits = as_bits(tensor.clone()).clone()
            bits[place] ^= torch.tensor(1, dtype=torch.int64).bitwise_left_shift(bit).to(bits.dtype)
            assert int(fingerprint(bits.view(dtype))) != before


def test_n08_a_majority_decides_and_what_never_changes_decides_for_two():
    assert odd_ones({"a": [1, 1, 2]}, {}) == [2]
    assert odd_ones({"a": [1, 2]}, {}) == []
    assert odd_ones({"a": [3, 1]}, {"a": [1, 1]}) == [0]
    assert odd_ones({"a": [1, 2], "b": [5, 7]}, {"b": [5, 5]}) == [1]
    assert odd_ones({"a": [1, 2, 3]}, {}) == []
