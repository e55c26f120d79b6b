"""The report on runs of tiny models: every state equals the model opened by itself, and nothing is measured twice."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.tiny import tiny_model_folder

from tunesmith.data.prepared import prepare
from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import BadInput, CheckpointError, TunesmithError, UsageError
from tunesmith.evaluate.forgetting import Report
from tunesmith.evaluate.harness import loss_sums
from tunesmith.evaluate.paired import score_of
from tunesmith.evaluate.suite import Working, run_task
from tunesmith.evaluate.tasks import exercises_of, load_suite
from tunesmith.export.opening import Opened, open_model
from tunesmith.export.stages import Stages
from tunesmith.recipe import load_recipe, to_yaml
from tunesmith.run import execute
from tunesmith.running.forgetting import final_step, forgetting
from tunesmith.running.forgetting_tasks import Wish, best_first, suite_tasks
from tunesmith.track.outcome import FINISH
from tunesmith.track.process import this_process
from tunesmith.track.progress import NoProgress
from tunesmith.track.run_dir import RunDir
from tunesmith.types import Task

OWN = Wish(general=())
SUITE = """
tasks:
- {name: pick, kind: choice, made: {generator: patterns, count: 9}, chat: never}
- {name: sums, kind: generation, made: {generator: arithmetic, count: 8}, scorers: [f1], max_new_tokens: 4}
- {name: texts, kind: loss, made: {generator: prose, count: 8}}
"""


def write_answers(path: Path, count: int, word: str, answer: str) -> Path:
    lines = [{"prompt": f"{word} {at}?", "completion": f"{answer} {at * 7}"} for at in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """A folder with a model, data, and a home for all tests, so that kernels are compiled once."""
    folder = tmp_path_factory.mktemp("forgetting")
    tiny_model_folder(folder / "model", initializer_range=0.2, max_position_embeddings=1024)
    write_answers(folder / "train.jsonl", 24, "number", "it is")
    write_answers(folder / "test.jsonl", 12, "number", "it is")
    write_answers(folder / "general.jsonl", 12, "quite another", "zebra xylophone")
    (folder / "small.yaml").write_text(SUITE)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TUNESMITH_HOME", str(folder / "home"))
        yield folder


def train(place: Path, name: str, *words: str) -> RunDir:
    """Six steps, or what is left of them, with a checkpoint after every second; held-out data of both kinds."""
    settings = [f"model.path={place / 'model'}", f"data.train={place / 'train.jsonl'}", "train.steps=6"]
    settings += ["train.checkpoint.every=2", "train.checkpoint.keep=5", "train.sequences_per_step=4"]
    settings += [f"data.eval={place / 'test.jsonl'}", f"data.general.eval={place / 'general.jsonl'}"]
    settings += ["train.optimizer.lr=2e-2", *words]
    path = place / "runs" / name
    run = RunDir(path) if path.exists() else RunDir.create(place / "runs", name)
    execute(load_recipe(None, settings, {}).recipe, run, Mesh(), NoProgress())
    return run


@pytest.fixture(scope="module")
def trained(place) -> RunDir:
    return train(place, "trained")


@pytest.fixture
def run(trained, tmp_path) -> RunDir:
    """The trained run in a folder of its own, which a test may damage."""
    shutil.copytree(trained.path, tmp_path / "trained")
    return RunDir(tmp_path / "trained")


def changed(run: RunDir, *words: str) -> RunDir:
    """The same weights under another recipe."""
    run.config_file.write_text(to_yaml(load_recipe(run.config_file, words, {}).recipe))
    return run


def measure(run: RunDir, wish: Wish = OWN) -> Report:
    return forgetting(run, wish, NoProgress())


def code_of(run: RunDir, wish: Wish = OWN, kind: type[TunesmithError] = TunesmithError) -> str:
    with pytest.raises(kind) as caught:
        measure(run, wish)
    assert caught.value.diagnostic.fixes
    return caught.value.diagnostic.code


def loss_of(opened: Opened, file: Path) -> float:
    """The loss of a file under a model opened by itself."""
    settings = load_recipe(None, [f"data.train={file}"], {}).recipe.data
    found = prepare(settings.train, settings, opened.tokenizer, None, Task())
    nll, weights = loss_sums(opened.model, [found[at] for at in range(len(found))])
    return sum(nll) / sum(weights)


FULL = ["model.adapter=full", "train.optimizer.lr=2e-3"]


@pytest.mark.parametrize(
    "words",
    [None, FULL, pytest.param(["model.adapter=pissa"], marks=pytest.mark.nightly)],
    ids=["lora", "full", "pissa"],
)
def test_every_state_is_the_model_opened_by_itself(trained, place, words):
    run = trained if words is None else train(place, words[0].partition("=")[2], *words)
    found = measure(run, Wish(general=(str(place / "small.yaml"),)))
    assert [one.name for one in found.points] == ["base", "step 2", "step 4", "step 6 (final)"]
    assert found.work["loads"] == 1
    assert found.work["swaps"] == 3
    assert found.tasks["held out"] == ("new", "loss")
    assert found.tasks["general data"] == ("general", "loss")
    for point in found.points:
        name, which = (str(place / "model"), "auto") if point.step is None else (str(run.path), point.step)
        opened = open_model(name, which=which)
        for task, file in (("held out", "test.jsonl"), ("general data", "general.jsonl")):
            assert point.scores[task].value == pytest.approx(loss_of(opened, place / file), rel=1e-6)
        for task, path in load_suite(str(place / "small.yaml")):
            done = run_task(Working(opened.model, opened.tokenizer), task, exercises_of(task, path))
            expected = score_of(done.results, done.measures[0]).value
            assert point.scores[task.name].value == pytest.approx(expected, rel=1e-6)
    assert found.last.learned.value > 0.02
    assert found.last.scores["held out"].value != found.points[1].scores["held out"].value


def test_a_second_call_loads_and_measures_nothing_and_a_third_what_is_new(run, monkeypatch):
    shutil.rmtree(run.path / "forgetting", ignore_errors=True)
    first = measure(run)
    assert (first.work["measured"], first.work["known"]) == (8, 0)
    with monkeypatch.context() as patched:
        patched.setattr(Stages, "of", lambda source: pytest.fail("a model is loaded"))
        second = measure(run)
    assert (second.work["measured"], second.work["known"], second.work["loads"]) == (0, 8, 0)
    assert replace(second, work={}) == replace(first, work={})
    found = sorted((run.path / "forgetting" / "results").iterdir())
    found[0].write_text("{}")
    found[1].unlink()
    third = measure(run)
    assert (third.work["measured"], third.work["known"]) == (2, 6)
    assert replace(third, work={}) == replace(first, work={})
    assert measure(run, replace(OWN, limit=4)).work["measured"] == 8
    shutil.rmtree(run.checkpoints / "step-2")
    assert [one.name for one in measure(run).points] == ["base", "step 4", "step 6 (final)"]


def test_a_run_that_is_taken_up_again_has_its_results_already(trained, place):
    first = measure(trained)
    shutil.rmtree(trained.checkpoints / "step-6")
    again = measure(train(place, trained.id))
    assert again.work["measured"] == 0  # to the bit the same weights
    assert again.points == first.points


def test_final_weights_stand_for_themselves_without_checkpoints(run):
    expected = measure(run).last.scores
    shutil.rmtree(run.checkpoints)
    found = measure(run)
    assert [one.name for one in found.points] == ["base", "final"]
    assert found.work["measured"] == 2
    for task, score in expected.items():
        assert found.last.scores[task].value == pytest.approx(score.value, rel=1e-6)


@pytest.mark.parametrize(("limit", "counts", "cut"), [(8, (8, 8, 8), (1, 0, 0)), (9, (9, 8, 8), (0, 0, 0))])
def test_only_a_task_with_more_exercises_than_the_limit_is_cut(place, limit, counts, cut):
    found = list(suite_tasks(str(place / "small.yaml"), "general", Wish(limit=limit)))
    assert tuple(len(one.exercises) for one in found) == counts
    assert tuple(int(one.cut) for one in found) == cut


def test_the_final_step_is_the_best_one_with_early_stopping(tmp_path):
    made = RunDir(tmp_path)
    assert final_step(made) is None
    rows = [{"event": "best_weights", "step": 4}, {"event": FINISH, "steps": 6}]
    made.events_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert final_step(made) == 4
    with made.events_file.open("a") as file:
        file.write(json.dumps({"event": FINISH, "steps": 8}) + "\n")
    assert final_step(made) == 8


def test_a_damaged_checkpoint_is_left_out_and_told(run):
    shutil.rmtree(run.path / "forgetting", ignore_errors=True)
    weights = run.checkpoints / "step-2" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    (run.checkpoints / "step-4" / "manifest.json").write_text("{}")
    found = measure(run)
    assert [one.name for one in found.points] == ["base", "step 6 (final)"]
    assert [one.code for one in found.warnings] == ["W110", "W110"]


def test_weights_that_predict_no_numbers_are_left_out_and_told(run, monkeypatch):
    shutil.rmtree(run.path / "forgetting", ignore_errors=True)
    put = Stages.step

    def broken(self, checkpoint):
        model = put(self, checkpoint)
        if checkpoint.step == 4:
            next(iter(self.places.values())).data.fill_(float("nan"))
        return model

    monkeypatch.setattr(Stages, "step", broken)
    found = measure(run)
    assert [one.name for one in found.points] == ["base", "step 2", "step 6 (final)"]
    assert "not finite" in found.warnings[0].message


def test_what_was_trained_is_measured_where_nothing_is_held_out(run, place):
    found = measure(changed(run, "data.eval=[]"))
    assert "training data" in found.tasks
    assert [one.code for one in found.warnings] == ["W457"]
    named = measure(run, Wish(new=(str(place / "test.jsonl"),), general=()))
    assert named.tasks["test"] == ("new", "loss")
    assert named.warnings == ()
    evaluated = measure(changed(run, f"evaluate.data={place / 'test.jsonl'}"))
    assert (list(evaluated.tasks), evaluated.warnings) == (["test", "general data"], ())


def test_pairs_are_measured_by_which_answer_is_likelier(run, place):
    pairs = place / "pairs.jsonl"
    lines = [{"prompt": f"number {at}?", "chosen": f"it is {at * 7}", "rejected": f"zebra {at}"} for at in range(12)]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = measure(changed(run, "objective=dpo", f"data.train={pairs}", f"data.eval={pairs}"))
    assert found.tasks["held out"] == ("new", "accuracy")
    assert found.last.scores["held out"].value == 1.0
    assert best_first([-1.0, -2.0, -3.0]) == 1
    assert best_first([-2.0, -1.0, -3.0]) == 0
    assert best_first([-2.0, -3.0, -2.0]) == 0.5


def test_a_run_that_still_trains_is_refused(run):
    here = this_process()
    status = json.loads(run.status_file.read_text())
    status |= {"state": "running", "host": here.host, "pid": here.pid, "pid_start": here.start}
    run.status_file.write_text(json.dumps({**status, "heartbeat": time.time()}))
    assert code_of(run, kind=UsageError) == "E473"


def test_a_run_without_weights_is_refused(run):
    shutil.rmtree(run.checkpoints)
    shutil.rmtree(run.path / "adapter")
    assert code_of(run, kind=CheckpointError) == "E474"


def test_a_base_that_is_gone_can_be_named_and_another_is_refused(run, place):
    about = run.read_run()
    gone = place / "gone" / "model"
    changed(run, f"model.path={gone}")
    run.run_file.write_text(json.dumps({**about, "model": {**about["model"], "folder": str(gone)}}))
    assert code_of(run, kind=BadInput) == "E475"
    found = measure(run, replace(OWN, base=place / "model"))
    assert len(found.points) == 4
    assert code_of(run, replace(OWN, base=place / "nowhere"), BadInput) == "E475"
    other = tiny_model_folder(place / "other", seed=1)
    assert code_of(run, replace(OWN, base=other), BadInput) == "E475"
    shutil.rmtree(run.checkpoints)
    assert len(measure(run, replace(OWN, base=place / "model")).points) == 2


def test_what_has_no_figure_is_refused(run, place):
    feedback = place / "feedback.jsonl"
    lines = [{"prompt": f"number {at}?", "completion": f"it is {at}", "label": at % 2 == 0} for at in range(12)]
    feedback.write_text("".join(json.dumps(line) + "\n" for line in lines))
    changed(run, "objective=kto", f"data.train={feedback}", f"data.eval={feedback}")
    assert code_of(run) == "E476"
    named = measure(run, Wish(new=(str(place / "test.jsonl"),), general=()))
    assert set(named.tasks) == {"test", "general data"}
    assert code_of(changed(run, "data.train=[]", "data.eval=[]")) == "E476"
    changed(run, "objective=classify", "data.general.eval=[]", f"data.train={feedback}")
    assert code_of(run) == "E477"


def test_suites_that_do_not_fit_are_refused(run, place):
    changed(run, "data.general.eval=[]")
    assert code_of(run, Wish(general=("nowhere.yaml",))) == "E450"
    assert code_of(run, Wish(general=("raeding",))) == "E450"
    assert code_of(run, Wish(general=())) == "E479"
    assert code_of(run, Wish(new=("reading",), general=("choices",))) == "E478"
    duel = place / "duel.yaml"
    duel.write_text("{name: duel, kind: pairwise, made: {generator: prose, count: 4}, decider: {rule: longer}}\n")
    assert code_of(run, Wish(general=(str(duel),))) == "E478"


def test_without_a_word_the_shipped_choices_are_measured(run):
    found = measure(run, Wish(limit=8))  # of 12 records
    assert {one.change.n for one in found.last.changes} == {8}
    assert list(found.tasks) == ["held out", "general data", "prose", "patterns", "ordering", "reading"]
    assert {one.measure for one in found.last.changes} == {"loss", "bits_per_byte", "accuracy"}
