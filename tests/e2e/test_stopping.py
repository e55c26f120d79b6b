"""P1, P2, P3, R16: signals that come while a run evaluates or answers, during training and after it."""

import signal

import pytest
from tests.e2e.attempts import tiny_recipe

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import Interrupted, Preempted
from tunesmith.rollout.fixed_prompts import FixedPrompts
from tunesmith.run import execute
from tunesmith.track.index import summarise
from tunesmith.track.progress import NoProgress
from tunesmith.track.reader import read_lines, read_metrics
from tunesmith.track.run_dir import RunDir
from tunesmith.train.checkpoint import CheckpointStore
from tunesmith.train.evaluation_loss import HeldOut

pytestmark = pytest.mark.timeout(600)
SIGNALS = [(signal.SIGTERM, Preempted), (signal.SIGINT, Interrupted), (signal.SIGHUP, Preempted)]


class Heard(NoProgress):
    """Sends signals to this process when so many records are evaluated."""

    def __init__(self, *numbers: signal.Signals, at: int = 2) -> None:
        self.numbers, self.at, self.heard = list(numbers), at, 0

    def phase(self, text: str, done: int | None = None, total: int | None = None) -> None:
        if text.startswith("evaluating"):
            self.heard += 1
            while self.numbers and self.heard == self.at:
                signal.raise_signal(self.numbers.pop(0))


def evaluated(inputs, **changes):
    held_out = {"data.eval": [], "evaluate.data": inputs / "sequence_held_out.jsonl", "evaluate.max_new_tokens": 24}
    return tiny_recipe(inputs, changes={"train.steps": 3, "train.evaluate_every": 0, **held_out, **changes})


def begin(recipe, run, display=None):
    run.mkdir(exist_ok=True)
    return execute(recipe, RunDir(run), Mesh(), display or NoProgress())


@pytest.mark.row("P1", "P3")
@pytest.mark.parametrize(("number", "error"), SIGNALS)
def test_a_stop_after_the_training_leaves_the_evaluation_to_the_resume(inputs, tmp_path, number, error):
    recipe, run = evaluated(inputs), tmp_path / "run"
    display = Heard(number)
    with pytest.raises(error) as caught:
        begin(recipe, run, display)
    assert display.heard == 2, "it goes no further than the batch"
    assert caught.value.exit_code == (130 if error is Interrupted else 75)
    assert f"its weights are saved: {run / 'adapter'}" in str(caught.value)
    assert f"tunesmith runs resume {run}" in str(caught.value)
    found = summarise(RunDir(run))
    assert (found.state, found.step) == ("stopped" if error is Interrupted else "preempted", 3)
    before = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    begin(recipe, run)
    assert summarise(RunDir(run)).state == "finished"
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl") if "train/loss" in row] == [1, 2, 3]
    events = [row["event"] for row in read_lines(run / "events.jsonl")]
    assert events.count("evaluation") == 1


@pytest.mark.row("P2", "P3")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_in_the_evaluation_leaves_at_once(inputs, tmp_path, number, code):
    with pytest.raises(SystemExit) as caught:
        begin(evaluated(inputs), tmp_path / "run", Heard(number, number))
    assert caught.value.code == code
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    assert summarise(RunDir(tmp_path / "run")).state == "stopped"


@pytest.mark.row("P1")
def test_a_stop_in_the_middle_of_an_answer_does_not_wait_for_its_end(inputs, tmp_path):
    display = Heard(signal.SIGTERM, at=20)
    with pytest.raises(Preempted):
        begin(evaluated(inputs, **{"evaluate.metrics": ["exact_match"]}), tmp_path / "run", display)
    assert display.heard == 20


def told(run):
    """What a run has said of itself, in order, without times."""
    rows = [
        {name: value for name, value in row.items() if name == "step" or name.startswith(("train/", "eval/"))}
        for row in read_metrics(run / "metrics.jsonl")
    ]
    answers = [(row["step"], row["completion"]) for row in read_lines(run / "completions.jsonl") if "completion" in row]
    return rows, answers


def newest(run):
    """The position in the newest checkpoint."""
    checkpoint = CheckpointStore(run / "checkpoints").newest()
    assert checkpoint is not None
    return checkpoint.state["position"]


def between_steps(inputs):
    held_out = inputs / "sequence_held_out.jsonl"
    often = {"train.evaluate_every": 2, "train.sample_every": 2, "train.sample_prompts": "[hello]"}
    return tiny_recipe(inputs, changes={"train.steps": 5, "data.eval": held_out, "train.checkpoint.every": 0, **often})


@pytest.fixture
def whole(inputs, tmp_path):
    begin(between_steps(inputs), tmp_path / "whole")
    return told(tmp_path / "whole")


@pytest.mark.row("P1", "P2", "P4", "R16")
@pytest.mark.parametrize("step", [2, 5], ids=["middle", "end"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_an_evaluation_saves_and_the_resume_evaluates(inputs, tmp_path, whole, monkeypatch, step, number):
    run, bare, sent = tmp_path / "run", HeldOut.bare, []

    def signalled(held_out):
        for batch in bare(held_out):
            rows = read_metrics(run / "metrics.jsonl")
            if not sent and rows and rows[-1]["step"] == step:
                sent.append(number)
                signal.raise_signal(number)
            yield batch

    monkeypatch.setattr(HeldOut, "bare", signalled)
    if number == signal.SIGUSR1:
        begin(between_steps(inputs), run)
    else:
        with pytest.raises(Preempted, match=f"after step {step}, saved"):
            begin(between_steps(inputs), run)
        assert not [row for row in read_metrics(run / "metrics.jsonl") if row["step"] == step and "eval/loss" in row]
        assert newest(run)["step"] == step
        begin(between_steps(inputs), run)
    assert sent == [number]
    assert told(run) == whole


@pytest.mark.row("P1", "R16")
@pytest.mark.parametrize("step", [0, 2, 5], ids=["start", "middle", "end"])
def test_a_stop_in_answers_saves_and_the_resume_answers(inputs, tmp_path, whole, monkeypatch, step):
    run, call, sent = tmp_path / "run", FixedPrompts.__call__, []

    def signalled(prompts, at, on_token):
        if at == step and not sent:
            sent.append(at)
            signal.raise_signal(signal.SIGTERM)
        call(prompts, at, on_token)

    monkeypatch.setattr(FixedPrompts, "__call__", signalled)
    with pytest.raises(Preempted, match=f"after step {step}, saved"):
        begin(between_steps(inputs), run)
    assert step not in [at for at, _ in told(run)[1]]
    begin(between_steps(inputs), run)
    assert told(run) == whole


class Saving(NoProgress):
    """Asks for a checkpoint in the last step, so that it is saved before the evaluation."""

    def step(self, step, total, values):
        if step == total:
            signal.raise_signal(signal.SIGUSR1)


@pytest.mark.row("P4", "R16")
def test_what_was_told_after_the_last_checkpoint_is_not_told_twice(inputs, tmp_path, whole):
    run = tmp_path / "run"
    begin(between_steps(inputs), run, Saving())
    position = newest(run)
    assert (position["step"], position["evaluated"], position["sampled"]) == (5, 4, 4)
    for _ in range(2):
        assert told(run) == whole
        begin(between_steps(inputs), run)
