"""R5: runs of two ranks that are killed go on with two to the bit, and with one and then two in the same order."""

from itertools import pairwise

import pytest
from tests.distributed.crew import launch, surroundings, training
from tests.e2e.attempts import difference, outcome, tiny_recipe

from tunesmith.track.reader import read_lines, read_metrics
from tunesmith.train.checkpoint import CheckpointStore

SHARED = ("step", "tokens", "train/epoch", "train/tokens_per_step", "train/scored_per_step")
CLAIM = "2 ranks killed, resumed by 2: losses, weights, optimiser, generators equal to the bit"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resumes")
    with surroundings(folder):
        yield folder


def train(recipe, run, ranks: int, kill: int = 0) -> None:
    """Train until the end, or until all ranks are killed in the step `kill`."""
    number = sum(1 for _ in run.parent.glob(f"{run.name}-launch-*"))
    armed = f"train.step@step={kill}:kill" if kill else ""
    ended = launch(run.with_name(f"{run.name}-launch-{number}"), training(recipe, run, armed), ranks=ranks).run()
    assert ended.code == (7 if kill else 0), ended.error
    if kill:
        newest = CheckpointStore(run / "checkpoints").newest()
        assert (kill - 1) // 2 * 2 <= newest.step < kill  # later than every second one where it was the best so far
        assert newest.manifest["world"] == {"ranks": ranks}


def steps_of(run) -> list[dict]:
    return [row for row in read_metrics(run / "metrics.jsonl") if "train/loss" in row]


def warned(run) -> list[str]:
    return [row["message"] for row in read_lines(run / "events.jsonl") if row.get("code") == "W525"]


def check_equal(place, objective: str, kills: tuple[int, ...], **changes: object) -> None:
    """The run that was killed in these steps is the one that nobody killed."""
    recipe = tiny_recipe(place, objective, changes)
    name = "-".join([objective, *map(str, changes.values())])
    want, run = place / f"whole-{name}", place / "-".join(["killed", name, *map(str, kills)])
    if not want.exists():
        train(recipe, want, 2)
    for kill in kills:
        train(recipe, run, 2, kill)
    train(recipe, run, 2)
    assert outcome(run) == outcome(want), difference(outcome(run), outcome(want))
    assert len(steps_of(run)) == outcome(run)["state"]["total"]
    assert {"rank0.safetensors", "rank1.safetensors"} <= outcome(run)["files"].keys()
    assert warned(run) == []


def check_close(place, objective: str, worlds: tuple[tuple[int, int], ...]) -> float:
    """Ranks and the step they are killed in (0: never); the largest relative difference of a loss from 2 ranks'."""
    recipe = tiny_recipe(place, objective, {"model.adapter.dropout": 0.0})
    want, run = place / f"steady-{objective}", place / f"changed-{objective}-{len(list(place.iterdir()))}"
    if not want.exists():
        train(recipe, want, 2)
    for ranks, kill in worlds:
        train(recipe, run, ranks, kill)
    alone, changed = steps_of(want), steps_of(run)
    assert [[row[key] for key in SHARED] for row in changed] == [[row[key] for key in SHARED] for row in alone]
    ends = [CheckpointStore(path / "checkpoints").newest() for path in (want, run)]
    assert ends[0].state["source"] == ends[1].state["source"]
    assert ends[0].manifest["data"] == ends[1].manifest["data"]
    assert len(changed) == ends[0].step
    pairs = pairwise(worlds)
    told = [
        f"saved by {counted(before)}, and {counted(after)} will go on"
        for (before, _), (after, _) in pairs
        if before != after
    ]
    found = warned(run)
    assert len(found) == len(told)
    assert all(words in line for words, line in zip(told, found, strict=True))
    assert all("need not equal" in line for line in found)
    assert all(line in (run / "log.txt").read_text() for line in found)
    errors = [abs(b["train/loss"] / a["train/loss"] - 1) for a, b in zip(alone, changed, strict=True)]
    assert max(errors) <= 1e-5
    return max(errors)


def counted(ranks: int) -> str:
    return "1 rank" if ranks == 1 else f"{ranks} ranks"


def test_r05_two_killed_ranks_go_on_to_the_bit(place, evidence):
    check_equal(place, "sft", (9,))
    evidence("R5", claim=CLAIM, figure="1 of 1", seed=0)


def test_r05_one_rank_goes_on_for_two_and_two_for_one_in_the_same_order(place, evidence):
    error = check_close(place, "sft", ((2, 5), (1, 9), (2, 0)))
    evidence(
        "R5", claim="2 ranks, then 1, then 2: same examples; largest error of a loss", figure=f"{error:.1e}", seed=0
    )


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_r05_kills_and_changes_in_every_place(place, evidence):
    kills = [(3,), (6, 7, 8), (4, 10)]
    every = [(objective, chosen) for objective in ("sft", "dpo", "kto") for chosen in kills]
    for objective, chosen in every:
        check_equal(place, objective, chosen, **{"train.seed": 1})
    count = sum(len(chosen) for _, chosen in every)
    evidence("R5", claim=CLAIM, figure=f"{count} kills, {len(every)} of {len(every)} runs", seed=1)
    changes = [((2, 6), (1, 0)), ((2, 3), (4, 6), (1, 10), (3, 0))]
    worst = max(check_close(place, objective, worlds) for objective in ("sft", "dpo", "kto") for worlds in changes)
    claim = "2, 4, 1 and 3 ranks in turn: same examples; largest error of a loss"
    evidence("R5", claim=claim, figure=f"{worst:.1e} over {3 * len(changes)} runs", seed=0)


@pytest.mark.nightly
def test_r05_after_a_change_of_ranks_resumes_are_exact_again(place):
    recipe, found = tiny_recipe(place), []
    for name, worlds in (("once", ((1, 5), (2, 0))), ("twice", ((1, 5), (2, 9), (2, 0)))):
        for ranks, kill in worlds:
            train(recipe, place / name, ranks, kill)
        assert len(warned(place / name)) == 1
        found.append(outcome(place / name))
    assert found[0] == found[1], difference(*found)
