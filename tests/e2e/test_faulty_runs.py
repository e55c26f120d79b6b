"""Whole runs that meet a fault: saves in the background, memory that runs out, numbers that explode."""

import itertools
import json
import math
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tests.e2e.attempts import outcome

from tunesmith import faults
from tunesmith.errors import MachineError, NumericalError, TunesmithError, UsageError
from tunesmith.track.index import summarise
from tunesmith.track.reader import read_metrics
from tunesmith.track.run_dir import RunDir
from tunesmith.train import loop
from tunesmith.train.checkpoint import CheckpointStore

pytestmark = pytest.mark.timeout(600)


def events(run: Path, kind: str) -> list[dict]:
    rows = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [row for row in rows if row["event"] == kind]


def losses(run: Path) -> list[float]:
    return [row["train/loss"] for row in read_metrics(run / "metrics.jsonl") if "train/loss" in row]


def failure(kind: type[TunesmithError], work: Callable[[], object]) -> TunesmithError:
    with pytest.raises(kind) as caught:
        work()
    return caught.value


BACKGROUND = {"train__checkpoint__in_background": True}


def test_r11_a_slow_disk_in_the_background_holds_up_no_step(train, tmp_path, evidence):
    trace = tmp_path / "trace"
    slow = f"train.step:delay:60; ckpt.before_fsync:delay:100; ckpt.begin:trace:{trace}; ckpt.end:trace:{trace}"
    run = train("slow", slow, **BACKGROUND, train__epochs=7, train__checkpoint__every=20)
    saves = events(run, "checkpoint")
    assert [row["step"] for row in saves] == [20, 40, 42]
    assert min(row["seconds"] for row in saves) >= 0.5, "the disk was not slow"
    waited = saves[0]["held"] + saves[1]["held"]
    spent = sum(row["perf/step_s"] for row in read_metrics(run / "metrics.jsonl") if 0 < row["step"] <= 40)
    assert waited < 0.1 * spent
    passed = [line.split()[0] for line in trace.read_text().splitlines()]
    assert passed == ["ckpt.begin", "ckpt.end"] * 3, "two saves at once, or one that was not waited for"
    assert CheckpointStore(run / "checkpoints").newest().step == 42
    wrote = sum(row["seconds"] for row in saves[:2])
    evidence(
        "R11",
        claim="steps held up by saves on a slow disk",
        figure=f"{waited / spent:.1%} of their time, where writing took {wrote / spent:.0%}",
    )


def test_r11_the_background_changes_no_bit(train):
    plain, apart = (train(name, **extra) for name, extra in (("plain", {}), ("apart", BACKGROUND)))
    assert outcome(apart) == outcome(plain)
    assert [row["step"] for row in events(apart, "checkpoint")] == [row["step"] for row in events(plain, "checkpoint")]


def test_r10_r11_a_disk_that_fails_in_the_background_stops_the_run_in_our_words(train, tmp_path):
    error = failure(MachineError, lambda: train("full", "ckpt.before_rename@step=4:errno:ENOSPC", **BACKGROUND))
    assert "step 4: the checkpoint is not saved: the disk is full" in str(error)
    assert CheckpointStore(tmp_path / "full" / "checkpoints").steps() == [2]
    assert outcome(train("full", **BACKGROUND)) == outcome(train("whole"))


def test_p08_half_the_microbatch_gives_the_same_loss(train, evidence):
    wide = {"train__microbatch_tokens": 400, "train__checkpoint__every": 3}
    whole = train("whole", **wide)
    run = train("short", "train.backward@above=120:memory", **wide)
    halved = events(run, "out_of_memory")
    assert 1 <= len(halved) <= 5
    assert all(row["microbatch_tokens"] < 400 for row in halved)
    pairs = list(zip(losses(run), losses(whole), strict=True))
    apart = max(abs(a - b) / abs(b) for a, b in pairs)
    assert apart <= 1e-6
    limit = CheckpointStore(run / "checkpoints").newest().state["position"]["microbatch_tokens"]
    assert limit == halved[-1]["microbatch_tokens"] > 0
    evidence(
        "P8",
        claim="loss after a microbatch was halved for want of memory",
        figure=f"{apart:.1e} apart, relative, over {len(pairs)} steps",
    )


def test_p08_a_resume_keeps_the_smaller_microbatches(train, tmp_path):
    wide = {"train__microbatch_tokens": 400}
    armed = "train.backward@above=120:memory"
    whole = train("whole", armed, **wide)
    with pytest.raises(faults.InjectedFault):
        train("cut", f"{armed}; train.step@step=6:raise", **wide)
    before = len(events(tmp_path / "cut", "out_of_memory"))
    assert before >= 1
    run = train("cut", armed, **wide)
    assert len(events(run, "out_of_memory")) == before, "the resume ran out of memory again"
    assert outcome(run)["rows"] == outcome(whole)["rows"]


def test_p08_what_cannot_be_split_is_told_with_ways_out(train, tmp_path):
    wide = {"train__microbatch_tokens": 400}
    error = failure(MachineError, lambda: train("none", "train.backward:memory", **wide))
    assert (error.exit_code, error.diagnostic.code) == (5, "E491")
    for part in ("step 1 does not fit into memory", "on purpose", "train.activation_checkpointing=full"):
        assert part in str(error)
    assert len(error.diagnostic.fixes) == 3
    assert 1 <= len(events(tmp_path / "none", "out_of_memory")) <= 5


def test_p07_memory_that_runs_out_elsewhere_is_told_with_the_peak(train, tmp_path):
    error = failure(MachineError, lambda: train("elsewhere", "ckpt.begin:memory"))
    assert (error.exit_code, error.diagnostic.code) == (5, "E493")
    assert "GB at most" in str(error)
    assert len(error.diagnostic.fixes) == 3
    assert json.loads((tmp_path / "elsewhere" / "status.json").read_text())["exit_code"] == 5


@pytest.mark.parametrize(("figure", "value"), [("loss", "nan"), ("loss", "-inf"), ("grad_norm", "inf")])
def test_n01_one_bad_step_is_left_out_and_kept_as_evidence(train, figure, value):
    run = train("bad", f"train.{figure}@step=3:become:{value}", train__epochs=1)
    (row,) = events(run, "bad_step")
    assert (row["step"], row["action"]) == (3, "skip")
    (kept,) = (run / "bad_batches").iterdir()
    about = json.loads(kept.read_text())
    assert about["records"]
    newest = CheckpointStore(run / "checkpoints").newest()
    assert newest.state["position"]["skipped"] == 1
    assert all(bool(tensor.isfinite().all()) for tensor in newest.tensors("weights").values())


def test_n03_three_in_a_row_stop_with_code_6_and_the_last_good_checkpoint(train):
    armed = "; ".join(f"train.loss@step={step}:become:nan" for step in (4, 5, 6))
    error = failure(NumericalError, lambda: train("three", armed, train__checkpoint__every=3))
    assert (error.exit_code, error.diagnostic.code) == (6, "E120")
    assert "3 bad steps in a row" in str(error)
    assert "step-3" in str(error)


SPIKE = {"train__stability__on_spike": "rollback", "train__stability__window": 8, "train__epochs": 3}
SPIKE |= {"train__stability__sigma": 30}  # the short window sees no other one


def test_n04_rollback_puts_the_weights_of_the_checkpoint_back_and_goes_on(train):
    run = train("spike", "train.loss@step=8:become:90", **SPIKE, train__checkpoint__every=3)
    (row,) = events(run, "rollback")
    assert (row["step"], row["to"]) == (8, 6)
    assert [row["action"] for row in events(run, "bad_step")] == ["rollback"]
    newest = CheckpointStore(run / "checkpoints").newest()
    assert newest.state["position"]["skipped"] == 2  # step 7 was lost, step 8 left out
    calm = train("calm", **SPIKE, train__checkpoint__every=3)
    assert losses(run)[:7] == losses(calm)[:7]
    assert losses(run)[8:] != losses(calm)[8:]
    assert newest.state["source"] == CheckpointStore(calm / "checkpoints").newest().state["source"]


def test_n04_without_a_checkpoint_a_rollback_only_leaves_the_step_out(train):
    run = train("early", "train.loss@step=8:become:90", **SPIKE, train__checkpoint__every=0)
    assert events(run, "rollback") == []
    assert CheckpointStore(run / "checkpoints").newest().state["position"]["skipped"] == 1


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_n05_a_resume_inside_the_window_decides_the_same(train, policy):
    settings = {**SPIKE, "train__stability__on_spike": policy, "train__checkpoint__every": 3}
    spike = "train.loss@step=11:become:90"
    whole = train("whole", spike, **settings)
    assert [row["step"] for row in events(whole, "bad_step")] == [11]
    with pytest.raises(faults.InjectedFault):
        train("cut", f"{spike}; train.step@step=12:raise", **settings)
    found = outcome(train("cut", spike, **settings))
    want = outcome(whole)
    assert (found["rows"], found["files"], found["state"]) == (want["rows"], want["files"], want["state"])


def test_n09_the_same_seed_gives_the_same_bits_and_another_one_does_not(train):
    dropout = {"model__adapter__dropout": 0.1, "train__epochs": 1}
    first, second, other = (train(f"run{number}", **dropout, train__seed=number // 2) for number in range(3))
    assert outcome(first) == outcome(second)
    assert losses(other) != losses(first)


def test_n09_the_flag_changes_no_bit_on_a_cpu_and_is_kept_with_the_run(train):
    plain, strict = (train(name, train__epochs=1, train__deterministic=flag) for name, flag in (("a", 0), ("b", 1)))
    assert outcome(strict)["files"] == outcome(plain)["files"]
    assert json.loads((strict / "run.json").read_text())["deterministic"] is True
    assert json.loads((plain / "run.json").read_text())["deterministic"] is False
    assert not torch.are_deterministic_algorithms_enabled()


def test_n09_an_operation_that_cannot_repeat_itself_is_named(train, monkeypatch):
    def scatters(*given: object) -> object:
        torch.zeros(4).put_(torch.tensor([1, 1]), torch.tensor([1.0, 2.0]))  # which one stays is anybody's guess
        return compute_step(*given[:-1], **given[-1])

    compute_step = loop.compute_step
    monkeypatch.setattr(loop, "compute_step", lambda *given, **named: scatters(*given, named))
    assert losses(train("free", train__epochs=1)), "without the flag it runs"
    error = failure(UsageError, lambda: train("strict", train__deterministic=True))
    assert (error.exit_code, error.diagnostic.code) == (2, "E531")
    assert str(error).startswith("error[E531]: put_ has no deterministic kernel on this cpu, and train.deterministic")
    assert error.diagnostic.fixes[0].set == {"train.deterministic": False}


def test_n06_a_scale_that_overflows_at_every_step_falls_to_its_floor_and_stops(train, tmp_path, evidence):
    half = {"model__dtype": "float16", "model__adapter": "full", "train__loss_scale__initial": 8, "train__epochs": 3}
    error = failure(NumericalError, lambda: train("half", "train.grad_norm:become:inf", **half))
    assert (error.exit_code, error.diagnostic.code) == (6, "E120")
    assert error.diagnostic.fixes[0].set == {"model.dtype": "bfloat16"}
    assert "its loss scale is down to 1" in str(error)
    overflows = [row["step"] for row in events(tmp_path / "half", "overflow")]
    bad = [row["step"] for row in events(tmp_path / "half", "bad_step")]
    assert (overflows, bad) == ([1, 2, 3], [4, 5, 6])  # 8 -> 4 -> 2 -> 1, then three that no scale can help
    weights = CheckpointStore(tmp_path / "half" / "checkpoints").newest().tensors("weights")
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    evidence("N6", claim="steps from a loss scale of 8 to the stop, gradients infinite in each", figure=bad[-1])


def test_n06_gradients_that_fp16_loses_come_back_as_the_scale_grows(train):
    half = {"model__dtype": "float16", "model__adapter": "full", "train__epochs": 1}
    small = {"train__loss_scale": "{initial: 1, every: 1, growth: 16}", "objective": "{name: sft, coefficient: 1.0e-7}"}
    run = train("small", **half, **small, train__clip_norm=0)
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "train/loss_scale" in row]
    norms = [row["train/grad_norm"] for row in rows]
    assert norms[0] < 0.5 * norms[-1], "nothing was lost at a scale of 1"
    assert rows[-1]["train/loss_scale"] >= 2**12


def test_n07_answers_of_one_token_and_of_none_are_trained_counted_and_finite(inputs, train, tmp_path):
    """Groups of answers and their spread belong to online methods that sample groups, which there are none of yet."""
    lines = [{"prompt": "a", "completion": "b"}, {"prompt": "", "completion": "c"}, {"prompt": "d", "completion": ""}]
    data = tmp_path / "short.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines * 4))
    each = {"data__train": data, "train__sequences_per_step": 1, "train__optimizer__weight_decay": 0.1}
    run = train("short", **each, data__on_bad="skip")
    found = losses(run)
    assert len(found) == 8
    assert all(math.isfinite(loss) and loss > 0 for loss in found)
    report = json.loads((run / "run.json").read_text())["data"]
    assert (report["records"], report["examples"], report["dropped"]) == (12, 4, {"empty turn or no assistant turn": 8})


def test_n07_steps_in_which_an_objective_has_nothing_to_learn_from_are_finite(inputs, train, tmp_path):
    """Bad answers are not imitated, so that the second loss has no token in the first steps."""
    data, rows = tmp_path / "feedback.jsonl", (inputs / "feedback.jsonl").read_text().splitlines()
    data.write_text("\n".join(sorted(rows, key=lambda row: json.loads(row)["label"])) + "\n")
    both = {"objective": "[{name: kto}, {name: sft}]", "data__train": data, "data__shuffle": False}
    run = train("both", **both, train__sequences_per_step=2, train__epochs=1)
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "train/loss" in row]
    assert [row["train/loss/sft"] == 0 for row in rows[:3]] == [True] * 3
    assert rows[-1]["train/loss/sft"] > 0
    assert all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))


def test_n10_a_run_that_diverges_at_once_stops_before_the_window_is_filled(train, tmp_path, evidence):
    wild = {"train__optimizer__lr": 10, "train__schedule": "{name: constant, warmup: 0}", "train__epochs": 10}
    wild |= {"model__adapter": "full", "train__stability__on_spike": "off"}
    error = failure(NumericalError, lambda: train("wild", **wild))
    assert (error.exit_code, error.diagnostic.code) == (6, "E530")
    assert error.diagnostic.fixes[0].set == {"train.optimizer.lr": 1.0}
    with pytest.raises(faults.InjectedFault):
        train("cut", "train.step@step=6:raise", **wild)  # three bad steps are in the checkpoint of step 4
    again = failure(NumericalError, lambda: train("cut", **wild))
    assert again.diagnostic.message == error.diagnostic.message
    (row,) = events(tmp_path / "wild", "bad_step")
    evidence("N10", claim="steps until a run at 50,000 times its rate is stopped (window: 128)", figure=row["step"])


def test_n10_a_rate_far_too_high_ends_in_code_6_and_not_in_hours(train):
    assert failure(UsageError, lambda: train("refused", train__optimizer__lr=1e3)).diagnostic.code == "E013"
    rising = {"train__optimizer__lr": 10, "train__schedule": "{name: rising, warmup: 0}", "train__epochs": 10}
    error = failure(NumericalError, lambda: train("wild", **rising, model__adapter="full", train__stability__window=16))
    assert error.exit_code == 6
    assert "3 bad steps in a row" in str(error)


def test_p12_what_a_kill_left_of_the_final_weights_goes_with_the_next_start(train, tmp_path):
    with pytest.raises(faults.InjectedFault):
        train("cut", "train.step@step=3:raise", train__epochs=1)
    for name in (".tmp-adapter-0a1b2c3d", ".old-adapter-0a1b2c3d"):
        (tmp_path / "cut" / name).mkdir()
        (tmp_path / "cut" / name / "adapter_model.safetensors").write_bytes(b"half")
    run = train("cut", train__epochs=1)
    assert [path.name for path in run.iterdir() if path.name.startswith((".tmp-", ".old-"))] == []
    assert (run / "adapter" / "adapter_model.safetensors").exists()


def test_p11_a_clock_that_jumps_by_a_day_changes_no_figure(train, monkeypatch, evidence):
    calm = train("calm", train__epochs=1)
    now, asked = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: now() + (86_400, 0, -86_400)[next(asked) % 3])
    run = train("jumping", train__epochs=1)
    monkeypatch.undo()
    rows = list(read_metrics(run / "metrics.jsonl"))
    walls = [row["wall"] for row in rows]
    assert max(abs(later - earlier) for earlier, later in pairwise(walls)) > 80_000, "the clock did not jump"
    assert outcome(run)["rows"] == outcome(calm)["rows"]
    assert [row["step"] for row in events(run, "checkpoint")] == [row["step"] for row in events(calm, "checkpoint")]
    spans = [value for row in rows for key, value in row.items() if key.startswith("perf/")]
    assert all(0 <= value < 1e7 for value in spans)
    assert 0 < CheckpointStore(run / "checkpoints").newest().state["position"]["seconds"] < 600
    told = summarise(RunDir(run))
    assert (told.state, told.exit_code) == ("finished", 0)
    evidence(
        "P11", claim="speeds, times and saves under a clock that jumps by a day", figure=f"{len(spans)} figures sane"
    )


def test_r16_saves_at_every_step_and_evaluation_lose_and_repeat_nothing(train, inputs):
    every = {
        "train__checkpoint__every": 1,
        "train__evaluate_every": 1,
        "data__eval": inputs / "sequence_held_out.jsonl",
    }
    run = train("often", **every)
    rows = list(read_metrics(run / "metrics.jsonl"))
    total = CheckpointStore(run / "checkpoints").newest().step
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, total + 1))
    assert [row["step"] for row in rows if "eval/loss" in row] == list(range(1, total + 1))
    assert [row["step"] for row in events(run, "checkpoint")] == list(range(1, total + 1))
    assert os.listdir(run / "checkpoints").count(f"step-{total}") == 1
