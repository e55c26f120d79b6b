"""`tunesmith runs` as a user meets it."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from tests.unit.cli.test_main import call, measured

from tunesmith.track import RunDir, Tracker

CONFIG = "train:\n  steps: 3\n  optimizer:\n    lr: 1e-4\nrun:\n  name: {name}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, scale in (("one", 1.0), ("two", 2.0)):
        run = RunDir.create(tmp_path / "runs", name)
        run.write_config(CONFIG.format(name=name).replace("1e-4", "1e-4" if name == "one" else "0.002"))
        run.write_plan({"steps": 3, "tokens_per_step": 64, "seconds": 3.0, "memory": {"peak": 2e9}})
        run.write_run({"created": 1000.0 * scale, "argv": ["tunesmith", "train"]})
        with Tracker(run) as tracker:
            tracker.status("running", total=3)
            for step in range(1, 4):
                values = {"train/loss": scale / step, "perf/step_s": 1.0, "mem/peak_gb": 1.9, "train/lr": 1e-4}
                tracker.metrics(step, step * 60, {**values, "train/tokens_per_step": 60.0, "train/grad_norm": 1.0})
            tracker.event("evaluation", {"exact_match": 0.875})
            tracker.event("warning", {"code": "W190", "message": "\x1b[31mred\x07"})
            tracker.text("last words")
    return tmp_path / "runs"


def answer_of(capsys) -> dict:
    value = json.loads(capsys.readouterr().out)
    assert value["schema"] == 1
    return value


@pytest.mark.parametrize("words", [["runs"], ["runs", "ls"]])
def test_runs_are_listed(folder, capsys, words):
    assert call(*words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "state", "step", "loss", "age"]
    assert lines[1].split()[:5] == ["two", "✓", "finished", "3/3", "0.6667"]
    assert call(*words, "--json") == 0
    assert [run["id"] for run in answer_of(capsys)["runs"]] == ["two", "one"]


def test_no_runs_is_no_error(tmp_path, capsys):
    assert call("runs", "--folder", str(tmp_path / "none")) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "quickstart" in captured.err
    assert call("runs", "--json", "--folder", str(tmp_path / "none")) == 0
    assert answer_of(capsys)["runs"] == []


def test_show_compares_plan_and_actual(folder, capsys):
    assert call("runs", "show", "last") == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("peak memory"))
    assert row.split() == ["peak", "memory", "2.00", "GB", "1.90", "GB", "0.95"]
    assert "exact_match 0.875" in text
    assert "\x1b[31m" not in text
    assert "\x07" not in text
    assert call("runs", "show", "two", "--json") == 0
    report = answer_of(capsys)
    assert {line["name"]: line["ratio"] for line in report["plan"]}["steps"] == 1.0
    assert report["outcome"]["last_loss"] == pytest.approx(2 / 3)
    assert report["about"]["argv"] == ["tunesmith", "train"]
    assert report["evaluations"] == [{"step": 3, "exact_match": 0.875}]


def test_show_tells_speed_and_mentions_a_profile(folder, capsys):
    assert call("runs", "show", "one") == 0
    assert "profile" not in capsys.readouterr().out
    run = RunDir.create(folder, "three")
    run.profile_text.write_text("a table")
    run.write_run({})
    with Tracker(run) as tracker:
        for step, seconds, share in ((1, 3.0, 0.2), (2, 1.0, 0.6)):
            values = {"train/loss": 1.0, "perf/step_s": seconds, "perf/mfu": share, "train/scored_per_step": 10.0}
            tracker.metrics(step, step * 60, values)
    assert call("runs", "show", "three") == 0
    text = capsys.readouterr().out
    assert str(run.profile_text.relative_to(folder.parent)) in text
    figures = {" ".join(line.split()[:-1]): line.split()[-1] for line in text.splitlines() if line.strip()}
    assert figures["model FLOP utilisation"] == "30.0%"
    assert figures["scored tokens/s"] == "5"
    assert call("runs", "show", "three", "--json") == 0
    assert answer_of(capsys)["outcome"]["mfu"] == pytest.approx(0.3)


def test_show_plot_prints_the_path(folder, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert call("runs", "show", "one", "--plot", "--json") == 0
    path = answer_of(capsys)["plot"]
    assert path == str(folder.relative_to(folder.parent) / "one" / "plot.png")
    assert os.path.getsize(path) > 10_000


def test_show_of_a_damaged_run_says_why(folder, capsys):
    (folder / "one" / "run.json").write_text("{")
    assert call("runs", "show", "one") == 0
    assert "run.json is not JSON" in capsys.readouterr().out


def test_tail_prints_the_last_rows(folder, capsys):
    assert call("runs", "tail", "one", "-n", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["2", "3"]
    assert call("runs", "tail", "one", "--json") == 0
    assert [row["step"] for row in answer_of(capsys)["rows"]] == [1, 2, 3]
    assert call("runs", "tail", "one", "--follow", "--json") == 0
    rows = [json.loads(line)["row"] for line in capsys.readouterr().out.splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]


def test_compare_shows_changed_settings_and_outcomes(folder, capsys):
    assert call("runs", "compare", "one", "two", "--json") == 0
    result = answer_of(capsys)
    assert result["changed"] == [{"key": "train.optimizer.lr", "values": [1e-4, 0.002]}]
    assert {row["name"]: row["values"] for row in result["outcome"]}["first_loss"] == [1.0, 2.0]
    assert call("runs", "compare", "one", "two") == 0
    text = capsys.readouterr().out
    assert "train.optimizer.lr" in text
    assert "+100.0%" in text


def test_an_unknown_run_is_a_usage_error(folder, capsys):
    assert call("runs", "show", "twoo") == 2
    assert "did you mean two?" in capsys.readouterr().err
    assert call("runs", "show", "x", "--json") == 2
    assert answer_of(capsys)["error"]["code"] == "E191"


def test_stop_refuses_a_run_that_is_not_running(folder, capsys):
    assert call("runs", "stop", "one") == 2
    assert "is not running, it is finished" in capsys.readouterr().err


def test_stop_never_signals_a_stranger_with_the_same_pid(folder, capsys):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        status = RunDir(folder / "one").read_status().to_json()
        (folder / "one" / "status.json").write_text(json.dumps({**status, "state": "running", "pid": bystander.pid}))
        assert call("runs", "stop", "one") == 2
        assert "is lost" in " ".join(capsys.readouterr().err.split())
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_stop_reaches_a_running_run(folder, capsys):
    program = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from tunesmith.track import RunDir, Tracker
        tracker = Tracker(RunDir(Path(sys.argv[1])), attempt=2, tensorboard=False)
        tracker.status("running")
        print("up", flush=True)
        time.sleep(60)
    """)
    child = subprocess.Popen([sys.executable, "-c", program, str(folder / "one")], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    assert call("runs", "stop", "one", "--json") == 0
    assert answer_of(capsys)["pid"] == child.pid
    assert child.wait(10) == -signal.SIGTERM
    assert call("runs", "show", "one") == 0
    text = capsys.readouterr().out
    assert "lost" in text
    assert "last words" in text
    assert "tunesmith runs resume runs/one" in text


@pytest.mark.parametrize("words", [["runs"], ["runs", "show", "one"], ["runs", "compare", "one", "two"]], ids=" ".join)
def test_runs_do_not_import_torch(folder, words):
    output, _, names = measured(*words)
    assert output.strip()
    assert not names & {"torch", "transformers", "numpy", "matplotlib"}


def test_long_lines_are_never_broken(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    with Tracker(RunDir(folder / "one"), attempt=2) as tracker:
        tracker.event("warning", {"code": "W191", "message": "wandb: [bold]" + "x" * 100})
    assert call("runs", "show", "one") == 0
    assert "W191 at step 0: wandb: [bold]" + "x" * 100 in capsys.readouterr().out.splitlines()


def written(folder, name: str, objective: str, rows: list[dict[str, float]], event: dict | None = None) -> None:
    run = RunDir.create(folder, name)
    run.write_config(f"objective:\n  name: {objective}\nrun:\n  name: {name}\n")
    run.write_run({"created": 3000.0})
    with Tracker(run) as tracker:
        tracker.status("running", total=len(rows))
        for step, row in enumerate(rows, 1):
            tracker.metrics(step, step * 10, row)
        if event:
            tracker.event("evaluation", event)


def test_losses_of_different_objectives_are_not_compared_but_preferences_are(folder, capsys):
    for name, loss in (("dpo", 0.69), ("ipo", 24.97)):
        row = {"train/loss": loss, "train/rewards/accuracy": 0.75, "eval/rewards/accuracy": 0.5}
        written(folder, name, name, [row, row])
    assert call("runs", "compare", "dpo", "ipo") == 0
    text = capsys.readouterr().out
    assert "%" not in next(line for line in text.splitlines() if line.startswith("last loss"))
    accuracy = next(line for line in text.splitlines() if line.startswith("accuracy"))
    assert accuracy.split() == ["accuracy", "75.0%", "75.0%", "50.0%", "50.0%"]
    assert call("runs", "compare", "dpo", "ipo", "--json") == 0
    result = answer_of(capsys)
    assert result["same_loss"] is False
    assert result["preferences"][0] == {"name": "rewards/accuracy", "values": [0.75, 0.75], "held_out": [0.5, 0.5]}


def test_a_classifier_shows_its_accuracy_and_scores_on_lines_of_their_own(folder, capsys):
    score = {"value": 0.9, "low": 0.8, "high": 0.95, "n": 40}
    scores = {"held-out": {"accuracy": score, "confusion": {"classes": ["a"], "counts": [[1]]}}}
    rows = [
        {"train/loss": 1.0, "train/accuracy": 0.5},
        {"train/loss": 0.5, "train/accuracy": 0.9, "eval/accuracy": 0.8},
    ]
    written(folder, "classes", "classify", rows, {"scores": scores})
    assert call("runs", "show", "classes") == 0
    text = capsys.readouterr().out
    assert next(line for line in text.splitlines() if line.startswith("accuracy ")).split()[1:] == [
        "50.0%",
        "90.0%",
        "80.0%",
    ]
    assert "held-out  accuracy 0.9 (0.8 to 0.95)" in text
    assert "confusion" not in text


def test_an_online_run_shows_a_row_per_round(folder, capsys):
    row = {"online/mean_mark": 1.5, "online/best_mark": 2.0, "online/records": 9.0, "online/ties": 2.0}
    rows = [{**row, "online/finished": share, "online/distinct": 0.5, "length/mean": 31.0} for share in (0.25, 0.75)]
    written(folder, "online", "dpo", rows)
    assert call("runs", "show", "online") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["1", "1.5", "2", "9", "2", "25.0%", "50.0%", "31"] in lines
    assert call("runs", "show", "online", "--json") == 0
    assert [row["round"] for row in answer_of(capsys)["rounds"]] == [1, 2]
