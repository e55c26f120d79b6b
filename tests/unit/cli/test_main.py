"""The command line as a user meets it: exit codes, streams, JSON, suggestions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.command import call

from tunesmith import __main__ as program
from tunesmith.cli.output import SCHEMA


def measured(*words: str) -> tuple[str, float, set[str]]:
    """Output, CPU seconds and imported top-level modules of a command in a fresh interpreter."""
    program = (
        "import resource, sys\n"
        "from tunesmith.cli.main import run\n"
        "try:\n    run(sys.argv[1:])\n"
        "except SystemExit:\n    pass\n"
        "use = resource.getrusage(resource.RUSAGE_SELF)\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "import json; print('\\n' + json.dumps([use.ru_utime + use.ru_stime, list(names)]), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    seconds, names = json.loads(done.stderr.splitlines()[-1])
    return done.stdout, seconds, set(names)


@pytest.mark.parametrize(
    "words",
    [["--help"], [], ["recipes"], ["recipes", "show", "sft"], ["explain", "E010"], ["config", "schema"], ["--version"]],
    ids=" ".join,
)
def test_light_commands_do_not_import_torch(words):
    output, _, names = measured(*words)
    assert output.strip()
    assert not names & {"torch", "transformers", "numpy", "peft"}


def test_help_takes_less_than_0_4_cpu_seconds():
    measured("--help")
    assert min(measured("--help")[1] for _ in range(3)) < 0.4


def test_help_shows_panels_and_examples(capsys):
    assert call() == 0
    text = capsys.readouterr().out
    assert "Start" in text
    assert "tunesmith train sft data.train=chats.jsonl" in text
    assert max(len(line) for line in text.splitlines()) <= 80


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["recipe"], "recipes"),
        (["recipes", "shw"], "show"),
        (["init", "--form", "sft"], "--from"),
        (["explian"], "explain"),
        (["chat", "starter", "--promt", "Hello"], "--prompt"),
    ],
)
def test_a_typo_gets_a_suggestion(words, hint, capsys):
    assert call(*words) == 2
    streams = capsys.readouterr()
    assert f"did you mean {hint}?" in streams.err
    assert "E020" in streams.err
    assert streams.out == ""


def test_errors_as_json_go_to_stdout(capsys):
    assert call("config", "show", "sft", "train.stpes=3", "--json") == 2
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == SCHEMA
    assert found["error"]["code"] == "E010"
    assert found["error"]["fixes"][0]["set"] == {"train.steps": 3}


def test_recipes_as_json(capsys):
    assert call("recipes", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {"sft", "full", "quickstart"} <= {entry["name"] for entry in found["recipes"]}
    assert all(entry["about"] for entry in found["recipes"])


def test_init_writes_once(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("init") == 0
    assert "data:" in Path("recipe.yaml").read_text()
    Path("recipe.yaml").write_text("mine")
    assert call("init") == 2
    assert Path("recipe.yaml").read_text() == "mine"
    assert call("recipes", "copy", "full", "other.yaml") == 0
    assert call("recipes", "copy", "ful", "more.yaml") == 2
    assert not Path("more.yaml").exists()


def test_config_show_prints_value_and_origin(capsys, monkeypatch):
    monkeypatch.setenv("TUNESMITH__TRAIN__SEED", "7")
    monkeypatch.setenv("COLUMNS", "200")
    assert call("config", "show", "sft", "train.steps=20") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "20" in lines["train.steps"]
    assert "command line" in lines["train.steps"]
    assert "environment" in lines["train.seed"]
    assert "sft.yaml:" in lines["train.optimizer.lr"]
    assert lines["train.clip_norm"].rstrip().endswith("default")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("train.optimizer.lr", "above 0"), ("lora_r", "model.adapter.rank"), ("packing", "always on"),
        ("train.checkpoint", "train.checkpoint.keep"),
    ],
)  # fmt: skip
def test_config_docs(key, words, capsys):
    assert call("config", "docs", key) == 0
    assert words in capsys.readouterr().out


def test_config_docs_of_a_typo(capsys):
    assert call("config", "docs", "train.optimiser.lr") == 2
    assert "did you mean train.optimizer.lr?" in capsys.readouterr().err


def test_explain(capsys):
    assert call("explain", "e010") == 0
    assert "learning_rate" in capsys.readouterr().out
    assert call("explain") == 0
    assert "E010" in capsys.readouterr().out
    assert call("explain", "E999") == 2


def test_a_bug_of_ours_is_one_diagnostic_and_a_crash_file(tmp_path, monkeypatch, capsys):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("no\nway")

    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path))
    monkeypatch.setattr("tunesmith.cli.recipes.shipped", broken)
    assert call("recipes") == 1
    streams = capsys.readouterr()
    assert "Traceback" not in streams.err
    (file,) = (tmp_path / "crash").iterdir()
    assert str(file) in streams.err.replace("\n", "")
    assert "ZeroDivisionError" in file.read_text()


def test_no_color_and_pipes_print_plain_text():
    program = [sys.executable, "-m", "tunesmith", "explain", "E999"]
    for environment in ({}, {"NO_COLOR": "1", "FORCE_COLOR": ""}):
        done = subprocess.run(program, capture_output=True, env={**os.environ, **environment}, check=False)
        assert done.returncode == 2
        assert b"\x1b" not in done.stderr


def test_a_missing_argument_points_to_the_help_of_its_command(capsys):
    assert call("serve") == 2
    told = capsys.readouterr().err
    assert "missing argument" in told
    assert "fix: tunesmith serve --help" in told
    assert call("chat", "starter", "--prompt") == 2
    assert "fix: tunesmith chat --help" in capsys.readouterr().err


def test_an_interrupt_outside_of_a_command_is_code_130_without_a_traceback(monkeypatch):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tunesmith.cli.main.run", interrupted)
    with pytest.raises(SystemExit) as caught:
        program.main()
    assert caught.value.code == 130
