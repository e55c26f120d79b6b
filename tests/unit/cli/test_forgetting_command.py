"""`tunesmith eval --forgetting` as a user meets it: after a training, by itself, in every form, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.command import call
from tests.tiny import tiny_model_folder

from tunesmith.cli.model import choose_weights
from tunesmith.errors import UsageError


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("command")
    tiny_model_folder(folder / "model", initializer_range=0.2)
    for name, word, answer in (
        ("train", "number", "it is"),
        ("test", "number", "it is"),
        ("general", "other", "zebra"),
    ):
        lines = [{"prompt": f"{word} {at}?", "completion": f"{answer} {at * 7}"} for at in range(12)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TUNESMITH_HOME", str(folder / "home"))
        patched.setenv("COLUMNS", "140")
        patched.chdir(folder)
        yield folder


WORDS = ["train", "sft", "model.path=model", "data.train=train.jsonl", "data.general.eval=general.jsonl", "--yes"]
WORDS += ["train.steps=4", "train.sequences_per_step=4", "train.checkpoint.every=2", "train.optimizer.lr=2e-2"]


def test_a_training_with_general_data_ends_with_the_report(place, capsys):
    assert call(*WORDS, "run.name=told", "data.eval=test.jsonl") == 0
    printed = capsys.readouterr().err
    assert "learned and forgotten" in printed
    assert "step 4 (final)" in printed
    assert "general data, general" in printed
    assert {path.name for path in (place / "runs" / "told" / "forgetting").iterdir()} >= {"report.json", "report.html"}
    assert call("runs", "show", "told") == 0
    shown = capsys.readouterr().out
    assert "learned and forgotten" in shown
    assert "step 4 (final)" in shown
    assert call("runs", "show", "told", "--json") == 0
    assert json.loads(capsys.readouterr().out)["forgetting"]["points"][0]["name"] == "base"

    assert call("eval", "--forgetting", "told", "--general", "none", "--out", "report", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["work"]["measured"] == 0  # the training measured it all
    assert told["work"]["known"] == 6
    assert [one["name"] for one in told["points"]] == ["base", "step 2", "step 4 (final)"]
    text = (place / "report" / "report.md").read_text()
    assert "# Learned and forgotten: told" in text
    ElementTree.fromstring((place / "report" / "report.html").read_text().removeprefix("<!DOCTYPE html>\n"))

    words = ("--general", "general.jsonl", "--general", "patterns", "--limit", "8", "--general-weight", "0.9")
    assert call("eval", "--forgetting", "told", "--data", "test.jsonl", *words) == 0
    printed = capsys.readouterr()
    assert "patterns, general" in printed.out
    assert "general, general" in printed.out
    assert "test, new task" in printed.out

    assert call("merge", "told", "merged", "--weights", "step-2") == 0
    assert call("merge", "told", "again", "--weights", "step-3") == 4
    assert "keeps no checkpoint of step 3" in capsys.readouterr().err


def test_a_report_that_cannot_be_made_is_a_warning_and_can_be_left_out(place, capsys):
    lines = [{"prompt": f"number {at}?", "completion": f"it is {at}", "label": at % 2 == 0} for at in range(12)]
    (place / "feedback.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = (*WORDS, "objective=kto", "data.train=feedback.jsonl", "train.steps=1", "--json")
    assert call(*words, "run.name=kto") == 0
    printed = capsys.readouterr()
    assert "warning[W459]" in printed.err
    assert "E476: nothing says what the new task is worth" in printed.err
    assert "forgetting" not in json.loads(printed.out)
    assert call(*words, "run.name=quiet", "evaluate.forgetting=0") == 0
    printed = capsys.readouterr()
    assert "W459" not in printed.err
    assert not (place / "runs" / "quiet" / "forgetting").exists()


@pytest.mark.parametrize("error", [MemoryError("no room"), KeyboardInterrupt(), RuntimeError("a fault of ours")])
def test_whatever_stops_the_report_leaves_the_training_whole(place, capsys, monkeypatch, error):
    def broken(*_):
        raise error

    monkeypatch.setattr("tunesmith.cli.forgetting.written_report", broken)
    assert call(*WORDS, "train.steps=1", "--json", f"run.name=whole-{type(error).__name__}") == 0
    printed = capsys.readouterr()
    assert "warning[W459]" in printed.err
    assert f"{type(error).__name__}: {error}" in printed.err
    assert "forgetting" not in json.loads(printed.out)


@pytest.mark.parametrize(
    "words",
    [
        ("--forgetting", "a", "b"),
        ("--forgetting", "a", "--metrics", "loss"),
        ("--forgetting", "a", "--against", "b"),
        ("--forgetting", "a", "--weights", "best"),
        ("a", "--data", "x", "--general", "choices"),
        ("a", "--suite", "basic", "--general-weight", "0.5"),
        ("a", "--data", "x", "--base", "y"),
    ],
)
def test_options_that_say_nothing_are_refused(words, capsys):
    assert call("eval", *words) == 2
    assert "E455" in capsys.readouterr().err


def test_a_run_that_is_none_is_refused(place, capsys):
    assert call("eval", "--forgetting", "nowhere") == 2
    assert "E191" in capsys.readouterr().err


def test_weights_of_a_step_are_named():
    assert choose_weights("step-40") == 40
    assert choose_weights("best") == "best"
    for word in ("step-", "step-x", "40"):
        with pytest.raises(UsageError):
            choose_weights(word)
