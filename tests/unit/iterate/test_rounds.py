"""Whole tiny online runs: the rule's rate rises, a kill in any phase changes nothing, references are what they say."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.tiny import tiny_model_folder

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import CheckpointError, DataError, TunesmithError, UsageError
from tunesmith.export.opening import find_weights
from tunesmith.iterate.loop import iterate, round_line
from tunesmith.iterate.planning import plan_any
from tunesmith.iterate.rounds import Round, all_prompts, prompts_of, round_recipe
from tunesmith.recipe import Recipe, load_recipe
from tunesmith.run import execute
from tunesmith.track.index import summarise
from tunesmith.track.progress import NoProgress, make_progress
from tunesmith.track.run_dir import RunDir

SHORT, LONG = "I am fine.", "Hello, how are you? I am fine, thank you. How can I help you today?"
ROUNDS = ["online.rounds=3", "online.prompts=12", "online.sampling.answers=6", "online.sampling.max_new_tokens=40"]
TRAIN = ["train.epochs=3", "train.sequences_per_step=6", "train.optimizer.lr=2e-3", "data.max_length=256"]


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Path:
    """A tiny model that gives a short or a long answer, each about half of the time."""
    folder = tmp_path_factory.mktemp("taught")
    base = tiny_model_folder(folder / "base")
    asked = [[{"role": "user", "content": f"Question {at}"}] for at in range(24)]
    answers = [[{"role": "assistant", "content": text}] for text in (SHORT, LONG)]
    rows = [{"prompt": turns, "completion": answer} for turns in asked for answer in answers]
    (folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"model.path={base}", f"data.train={folder / 'sft.jsonl'}", "model.adapter=full"]
    words += ["train.epochs=30", "train.sequences_per_step=16", "train.optimizer.lr=3e-3"]
    os.environ["TUNESMITH_HOME"] = str(folder / "home")
    run = RunDir.create(folder / "runs", "taught")
    with make_progress(quiet=True) as progress:
        execute(load_recipe(None, words, {}).recipe, run, Mesh(), progress)
    return run.path / "model"


@pytest.fixture(autouse=True)
def prompts(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"Question {at}\n" for at in range(24)), "utf-8")
    return path


def words(model: Path, prompts: Path, *settings: str, rule: str = "shorter") -> list[str]:
    return [f"model.path={model}", f"data.train={prompts}", f"online.label.rule={rule}", *ROUNDS, *TRAIN, *settings]


def recipe(model: Path, prompts: Path, *settings: str, name: str = "online_dpo", rule: str = "shorter") -> Recipe:
    return load_recipe(name, words(model, prompts, *settings, rule=rule), {}).recipe


def play(made: Recipe, run: RunDir):
    with make_progress(quiet=True) as progress:
        return iterate(made, run, Mesh(), progress)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_online_dpo_makes_answers_shorter_round_by_round(taught, prompts, tmp_path):
    run = RunDir.create(tmp_path / "runs", "r")
    result = play(recipe(taught, prompts, "online.prompts=24", "train.optimizer.lr=5e-4"), run)
    lengths = [found["sampled"]["mean_length"] for found in result.rounds]
    assert lengths[0] > lengths[1] > lengths[2], lengths
    assert lengths[0] > 1.2 * lengths[2], lengths
    marks = [found["labelled"]["mean_mark"] for found in result.rounds]
    assert marks[2] > marks[0] + 5, marks
    assert min(found["sampled"]["finished"] for found in result.rounds) > 0.9
    assert result.rounds[0]["trained"]["first_loss"] == pytest.approx(0.6931, abs=1e-3)
    assert result.steps == sum(found["trained"]["steps"] for found in result.rounds)
    last = run.path / "rounds" / "2" / "adapter" / "adapter_model.safetensors"
    kept = find_weights(run, "final").adapter
    assert kept == run.path / "adapter"
    assert kept.joinpath(last.name).read_bytes() == last.read_bytes()
    assert [(row["step"], row["online/records"] > 0) for row in rows(run.metrics_file)] == [
        (1, True),
        (2, True),
        (3, True),
    ]
    phases = [(row["round"], row["phase"]) for row in rows(run.events_file) if row["event"] == "phase"]
    assert phases == [(number, phase) for number in range(3) for phase in ("answers", "marks", "training")]
    assert summarise(run).state == "finished"
    pair = rows(run.path / "rounds" / "0" / "records.jsonl")[0]
    assert len(pair["chosen"][0]["content"]) < len(pair["rejected"][0]["content"])


def test_rejection_sampling_learns_the_best_answers(taught, prompts, tmp_path):
    run = RunDir.create(tmp_path / "runs", "r")
    made = recipe(taught, prompts, "online.rounds=2", name="rft", rule="lacks:Hello")
    result = play(made, run)
    rates = [found["labelled"]["mean_mark"] for found in result.rounds]
    assert rates[1] > rates[0] + 0.1, rates
    learned = [row["completion"][0]["content"] for row in rows(run.path / "rounds/1/records.jsonl")]
    assert len(learned) == 12
    assert not any("Hello" in text for text in learned)


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("reference", ["start", "previous"])
def test_each_round_goes_on_from_the_one_before_and_compares_as_told(taught, prompts, tmp_path, adapter, reference):
    settings = ["online.rounds=2", f"online.reference={reference}", f"model.adapter={adapter}", "train.epochs=1"]
    run = RunDir.create(tmp_path / "runs", "r")
    result = play(recipe(taught, prompts, *settings, "train.optimizer.lr=1e-3"), run)
    first = result.rounds[1]["trained"]["first_loss"]
    assert (first == pytest.approx(math.log(2), abs=1e-6)) == (reference == "previous"), first
    assert (run.path / ("adapter" if adapter == "lora" else "model")).is_dir()
    for number in (0, 1):
        side = json.loads((run.path / f"rounds/{number}/sampled.jsonl.settings.json").read_text())
        assert ("adapter" in side["weights"]) == (adapter == "lora" and number == 1)


def test_an_adapter_as_the_start_is_part_of_the_reference(taught, prompts, tmp_path):
    first = RunDir.create(tmp_path / "runs", "first")
    play(recipe(taught, prompts, "online.rounds=1"), first)
    run = RunDir.create(tmp_path / "runs", "second")
    settings = [f"model.adapter_path={first.path / 'adapter'}", "online.rounds=2", "train.optimizer.lr=1e-9"]
    result = play(recipe(taught, prompts, *settings), run)
    losses = [found["trained"]["first_loss"] for found in result.rounds]
    assert losses == [pytest.approx(0.6931, abs=1e-3)] * 2
    assert (run.path / "rounds" / "start" / "config.json").exists()


def test_prompts_are_new_every_round_until_all_were_asked(taught, prompts):
    made = recipe(taught, prompts)
    asked = all_prompts(made)
    parts = [[prompt.line for prompt in prompts_of(made, asked, number)] for number in range(3)]
    assert sorted(parts[0] + parts[1]) == list(range(1, 25))
    assert parts[2] == parts[0] != sorted(parts[0])
    everything = recipe(taught, prompts, "online.prompts=null")
    assert prompts_of(everything, asked, 5) == asked


def test_a_plan_comes_before_the_answers(taught, prompts):
    plan = plan_any(recipe(taught, prompts))
    assert plan.steps.total == 6
    assert plan.counted.records == 12
    assert plan.fits
    with pytest.raises(UsageError, match="E270"):
        plan_any(recipe(taught, prompts, "online.label.rule=null"))
    with pytest.raises(UsageError, match="E271"):
        plan_any(recipe(taught, prompts, "objective=reward"))


def test_a_first_round_without_a_record_fails_and_a_later_one_ends_the_run(taught, prompts, tmp_path):
    with pytest.raises(DataError, match="E264"):
        play(
            recipe(taught, prompts, "online.label.unfinished=drop", rule="contains:zebra"),
            RunDir.create(tmp_path / "runs", "a"),
        )
    run = RunDir.create(tmp_path / "runs", "b")
    play(recipe(taught, prompts, "online.rounds=1"), run)
    again = Round(1, run)
    again.run.path.mkdir()
    made = recipe(taught, prompts, "online.rounds=2")
    assert round_recipe(made, again).model.adapter_path == str(run.path / "rounds" / "0" / "adapter")
    answers = rows(run.path / "rounds/0/sampled.jsonl")
    for row in answers:
        row |= {"answers": ["same"] * 6, "finished": [True] * 6}
    play_round_with(answers, made, run)


def play_round_with(answers: list[dict], made: Recipe, run: RunDir) -> None:
    """Round 2 finds its answers drawn: all alike."""
    from tunesmith.export.identity import weights_identity
    from tunesmith.iterate.rounds import policy_source, seed_of
    from tunesmith.rollout.sampling import drawing_identity

    this = Round(1, run)
    asked = prompts_of(made, all_prompts(made), 1)
    drawn = [{**row, "index": at, **asked[at].to_json()} for at, row in enumerate(answers)]
    this.sampled.write_text("".join(json.dumps(row) + "\n" for row in drawn))
    identity = drawing_identity(made.online.sampling, seed_of(made, 1), weights_identity(policy_source(made, this)))
    this.sampled.with_name("sampled.jsonl.settings.json").write_text(json.dumps(identity))
    result = play(made, run)
    assert result.stopped_early
    assert len(result.rounds) == 1
    assert any(row["event"] == "early_stop" for row in rows(run.events_file))


def test_a_resume_refuses_other_settings_and_takes_more_rounds(taught, prompts, tmp_path):
    run = RunDir.create(tmp_path / "runs", "r")
    play(recipe(taught, prompts, "online.rounds=1"), run)
    with pytest.raises(CheckpointError, match=r"online\.sampling\.temperature"):
        play(recipe(taught, prompts, "online.sampling.temperature=0.5"), run)
    before = (run.path / "rounds/0/round.json").read_bytes()
    result = play(recipe(taught, prompts, "online.rounds=2"), run)
    assert len(result.rounds) == 2
    assert (run.path / "rounds/0/round.json").read_bytes() == before
    assert [row["step"] for row in rows(run.metrics_file) if "step" in row] == [1, 2]


class Signalled(NoProgress):
    """Sends a signal to this process when a phase or a training step shows up."""

    def __init__(self, number: int, phase: str) -> None:
        self.number = number
        self.wanted = phase

    def phase(self, text: str, done: int | None = None, total: int | None = None) -> None:
        if text == self.wanted:
            self.wanted = ""
            os.kill(os.getpid(), self.number)

    def step(self, step: int, total: int, values: Mapping[str, float]) -> None:
        self.phase("step")


@pytest.mark.parametrize(
    ("number", "phase", "state", "code"),
    [
        (signal.SIGTERM, "round 1: answers", "preempted", 75),
        (signal.SIGTERM, "step", "preempted", 75),
        (signal.SIGINT, "step", "stopped", 130),
    ],
)
def test_a_signal_stops_in_any_phase_and_the_run_goes_on(taught, prompts, tmp_path, number, phase, state, code):
    made = recipe(taught, prompts, "online.rounds=1")
    run = RunDir.create(tmp_path / "runs", "r")
    with pytest.raises(TunesmithError) as caught:
        iterate(made, run, Mesh(), Signalled(number, phase))
    assert caught.value.exit_code == code
    assert caught.value.diagnostic.fixes[0].command == f"tunesmith runs resume {run.path}"
    assert "round 1 of 1" in caught.value.diagnostic.evidence[0]
    assert summarise(run).state == state
    assert len(play(made, run).rounds) == 1
    assert summarise(run).state == "finished"


class SignalledAtTheEnd(Signalled):
    def step(self, step: int, total: int, values: Mapping[str, float]) -> None:
        if step == total:
            self.phase("step")


@pytest.mark.row("P1")
def test_a_signal_in_the_last_step_of_a_round_keeps_the_round_and_begins_no_other(taught, prompts, tmp_path):
    made = recipe(taught, prompts, "online.rounds=2")
    run = RunDir.create(tmp_path / "runs", "r")
    with pytest.raises(TunesmithError) as caught:
        iterate(made, run, Mesh(), SignalledAtTheEnd(signal.SIGTERM, "step"))
    assert caught.value.exit_code == 75
    assert "in round 2 of 2: answers" in str(caught.value)
    assert (run.path / "rounds/0/round.json").exists()
    assert not (run.path / "rounds/1/sampled.jsonl").exists()
    assert len(play(made, run).rounds) == 2


def test_a_run_killed_in_every_phase_ends_with_the_same_weights(taught, prompts, tmp_path):
    settings = words(taught, prompts, "online.rounds=2", "train.checkpoint.every=1", "train.epochs=1")
    whole, killed = tmp_path / "runs" / "whole", tmp_path / "runs" / "killed"
    whole.mkdir(parents=True)
    play(load_recipe("online_dpo", settings, {}).recipe, RunDir(whole))
    faults = ["online.after_sampling@step=0", "online.after_labelling@step=0", "train.step@step=2"]
    faults += ["online.after_round@step=0", "online.after_sampling@step=1", "online.after_round@step=1"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.iterate.killed", str(killed), ",".join(faults), *settings],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, other = (load_file(run / "adapter/adapter_model.safetensors") for run in (whole, killed))
    assert all((one[key] == other[key]).all() for key in one)
    for name in ("sampled.jsonl", "records.jsonl"):
        assert (killed / "rounds/1" / name).read_bytes() == (whole / "rounds/1" / name).read_bytes()
    assert [row["step"] for row in rows(killed / "metrics.jsonl") if "online/records" in row] == [1, 2]


def test_a_round_says_which_prompts_it_left_out_and_that_answers_are_cut(taught, prompts, tmp_path):
    run = RunDir.create(tmp_path / "runs", "r")
    made = recipe(
        taught, prompts, "online.rounds=1", "online.sampling.max_new_tokens=2", "online.label.unfinished=drop"
    )
    with pytest.raises(DataError) as caught:
        play(made, run)
    assert "12: too few finished answers" in caught.value.diagnostic.evidence
    warned = [row["code"] for row in rows(run.events_file) if row["event"] == "warning"]
    assert warned == ["W248"]


def test_a_round_tells_in_its_line_what_was_left_out():
    sampled = {"completions": 48, "mean_length": 30.0}
    labelled = {"mean_mark": None, "records": 1, "ties": 2, "prompts": 12}
    trained = {"first_loss": None, "last_loss": None}
    found = {"round": 0, "sampled": sampled, "trained": trained}
    line = round_line({**found, "labelled": {**labelled, "left_out": {"too few finished answers": 9}}})
    assert line.endswith(
        "1 records, 2 ties, 9 of 12 prompts left out: 9 too few finished answers (raise online.sampling.max_new_tokens)"
    )
    assert round_line({**found, "labelled": {**labelled, "left_out": {}}}).endswith("1 records, 2 ties")
