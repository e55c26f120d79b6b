"""`tunesmith eval --suite` as a user meets it: two models, every form of the report, and what is refused."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import yaml
from tests.command import call
from tests.tiny import tiny_model_folder

from tunesmith.evaluate.tasks import exercises_of, load_suite
from tunesmith.models.adapters import attach, trainable
from tunesmith.models.config import LoraConfig, ModelConfig
from tunesmith.models.load import load_base
from tunesmith.models.save import save_weights
from tunesmith.track.run_dir import RunDir

SUITE = """
about: Small
tasks:
- prose
- {name: pick, kind: choice, made: {generator: patterns, count: 12}, chat: never}
- {name: sums, kind: generation, made: {generator: arithmetic, count: 8}, scorers: [numeric], max_new_tokens: 4}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("model")
    settings = {"tie_word_embeddings": False, "initializer_range": 0.2, "max_position_embeddings": 1024}
    return tiny_model_folder(place, **settings)


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory) -> Path:
    """A LoRA run whose training data holds two exercises of `pick`, word by word."""
    made = RunDir.create(tmp_path_factory.mktemp("runs"), "first")
    model = attach(load_base(folder, ModelConfig(path=str(folder))), LoraConfig(rank=4))
    torch.manual_seed(0)
    for parameter in trainable(model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    train = made.path / "train.jsonl"
    copied = [one.fields["question"] for one in exercises_of(*load_suite("patterns")[0])[:2]]
    train.write_text("".join(json.dumps({"instruction": text, "output": "?"}) + "\n" for text in copied))
    settings = {"path": str(folder), "adapter": {"method": "lora", "rank": 4}}
    made.write_config(yaml.safe_dump({"model": settings, "data": {"train": [str(train)]}}))
    made.write_run({"model": {"path": str(folder), "folder": str(folder)}})
    save_weights(model, made.path, folder)
    return made.path


@pytest.fixture
def suite(tmp_path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(SUITE)
    return str(path)


def test_two_models_are_compared_in_every_form(folder, finished, suite, tmp_path, capsys) -> None:
    out = tmp_path / "out" / "here"
    words = ("eval", str(folder), str(finished), "--suite", suite, "--limit", "10", "--out", str(out))
    assert call(*words, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["models"] == [folder.name, "first"]
    assert told["given"] == {folder.name: str(folder), "first": str(finished)}
    assert {one["task"] for one in told["scores"]} == {"prose", "pick", "sums"}
    main = {one["task"]: one for one in told["differences"] if one["main"]}
    assert main.keys() == {"prose", "pick", "sums"}
    assert main["pick"]["n"] == 10
    assert main["prose"]["change"]["value"] != 0
    [seen] = [one for one in told["contamination"] if one["task"] == "pick"]
    assert [one["name"] for one in seen["seen"]] == ["pick-1", "pick-2"]
    assert [one["code"] for one in told["warnings"]] == ["W450"]
    results = sorted(out.glob("results-*.jsonl"))
    assert len(results) == 2
    rows = [json.loads(line) for line in results[0].read_text().splitlines()]
    assert len(rows) == 10 + 10 + 8
    shares = [row["scores"]["accuracy"] for row in rows if row["task"] == "pick"]
    score = next(one for one in told["scores"] if (one["task"], one["measure"]) == ("pick", "accuracy"))
    assert score["score"]["value"] == pytest.approx(sum(shares) / 10)
    assert json.loads((out / "report.json").read_text())["differences"] == told["differences"]
    assert "## Differences" in (out / "report.md").read_text()
    assert ElementTree.fromstring((out / "report.html").read_text()).tag == "html"


def test_the_terminal_shows_figures_and_regressions(folder, finished, suite, capsys) -> None:
    assert call("eval", str(folder), str(finished), "--suite", suite, "--limit", "6", "--max-new-tokens", "2") == 0
    shown = capsys.readouterr()
    assert "bits per byte" in shown.out
    assert "better/worse" in shown.out
    assert "no difference shown" in shown.out
    assert "W450" in shown.err
    assert call("eval", str(folder), "--suite", "patterns", "--limit", "5") == 0
    assert "better/worse" not in capsys.readouterr().out


def test_named_training_data_is_looked_into(folder, tmp_path, capsys) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text(json.dumps({"text": "nothing of the kind"}) + "\n")
    words = ("eval", str(folder), "--suite", "patterns", "--limit", "5", "--json")
    assert call(*words, "--train-data", str(data)) == 0
    [found] = json.loads(capsys.readouterr().out)["contamination"]
    assert (found["records"], found["seen"]) == (1, [])
    assert call(*words) == 0
    assert json.loads(capsys.readouterr().out)["contamination"] == []
    assert call(*words, "--train-data", str(tmp_path / "none.jsonl")) == 4


def test_training_data_that_is_gone_is_told(folder, finished, suite, capsys) -> None:
    train = finished / "train.jsonl"
    train.rename(finished / "gone.jsonl")
    try:
        assert call("eval", str(finished), "--suite", "patterns", "--limit", "3", "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert [one["code"] for one in told["warnings"]] == ["W453"]
    finally:
        (finished / "gone.jsonl").rename(train)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--suite", "bassic"), "E450"),
        (("--suite", "patterns", "--data", "x.jsonl"), "E455"),
        (("--suite", "patterns", "--metrics", "loss"), "E455"),
        (("--suite", "patterns", "--judge", "http://x"), "E455"),
        (("--suite", "patterns", "--answers", "x.jsonl"), "E455"),
        (("--data", "x.jsonl", "--out", "x"), "E455"),
        (("--suite", "patterns", "--shots", "2"), "E455"),
        (("--suite", "patterns", "--dtype", "float32"), "E455"),
        (("--data", "x.jsonl", "--run-code"), "E455"),
        (("--suite", "harness:,"), "E466"),
        ((), "E455"),
    ],
)
def test_options_that_do_not_go_together_are_refused(folder, words, code, capsys) -> None:
    assert call("eval", str(folder), *words) == 2
    shown = capsys.readouterr().err
    assert f"error[{code}]" in shown
    assert "fix:" in shown


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("eval", "M", "--data", "x.jsonl", "--answers", "no/where/a.jsonl"), "--answers a.jsonl"),
        (("export", "M", "out", "--dtype", "fp16"), "did you mean float16?"),
        (("export", "M", "out", "--to", "ggml"), "did you mean gguf?"),
        (("export", "M", "out", "--to", "zip"), "one of these, such as --to huggingface"),
        (("eval", "M", "--suite", "patterns", "--weights", "best"), "leave --weights out"),
        (("eval", "M", "--forgetting"), "name a run: tunesmith eval --forgetting last"),
    ],
)
def test_what_to_type_instead_is_told_before_anything_is_measured(folder, words, told, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(*(str(folder) if word == "M" else word for word in words)) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "E020" in shown or "E455" in shown
    assert told in shown


def test_products_are_those_of_tasks_that_write(folder, suite, tmp_path, capsys) -> None:
    words = ("eval", str(folder), "--suite", suite, "--limit", "4", "--json")
    assert call(*words) == 0
    exact = json.loads(capsys.readouterr().out)["scores"]
    assert call(*words, "--products", "shared") == 0
    assert json.loads(capsys.readouterr().out)["scores"] == exact
    assert call(*words, "--products", "int8") == 4
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "E428"  # the model is in fp32
    assert call("eval", str(folder), "--suite", "patterns", "--products", "int8") == 2
    assert "no task of the suite has the model write any" in " ".join(capsys.readouterr().err.split())
    assert call(*words, "--products", "int4") == 2
    asked = tmp_path / "asked.txt"
    asked.write_text("Hello\n")
    duel = ("eval", str(folder), "--against", str(folder), "--data", str(asked), "--rule", "longer")
    assert call(*duel, "--products", "int8") == 4
    assert "E428" in capsys.readouterr().err


def test_models_are_compared_by_a_suite_alone_and_named_once(folder, finished, capsys) -> None:
    assert call("eval", str(folder), str(finished), "--data", "x.jsonl") == 2
    assert "--suite basic" in capsys.readouterr().err
    assert call("eval", str(folder), str(folder), "--suite", "patterns") == 2
    assert "named twice" in capsys.readouterr().err
    assert call("eval", str(folder), f"{folder}/../{folder.name}", "--suite", "patterns") == 2
    assert "error[E455]" in (told := capsys.readouterr().err)
    assert "once more" in " ".join(told.split())


def test_a_pairwise_task_is_decided_by_its_rule(folder, finished, tmp_path, capsys) -> None:
    task = tmp_path / "talk.yaml"
    rows = "exercises: [{question: Hello}, {question: Good morning}]"
    task.write_text(f"name: talk\nkind: pairwise\n{rows}\ndecider: {{rule: longer}}\nmax_new_tokens: 6\n")
    assert call("eval", str(folder), "--suite", str(task)) == 2
    assert "E458" in capsys.readouterr().err
    assert call("eval", str(folder), str(finished), "--suite", str(task), "--json") == 0
    [one] = json.loads(capsys.readouterr().out)["differences"]
    assert (one["measure"], one["test"], one["first"]) == ("wins", "sign", 0.5)


CODE = """
name: functions
kind: generation
exercises: [{question: Write f., test: "assert True"}, {question: Write g., test: "assert False"}]
scorers: [{name: code, program: "{test}"}]
max_new_tokens: 2
"""


def test_answers_are_run_only_when_the_user_says_so(folder, tmp_path, capsys) -> None:
    task = tmp_path / "functions.yaml"
    task.write_text(CODE)
    assert call("eval", str(folder), "--suite", str(task)) == 2
    shown = capsys.readouterr().err
    assert "error[E459]" in shown
    assert "add --run-code" in shown
    assert call("eval", str(folder), "--suite", str(task), "--run-code", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["scores"][0]["score"]["value"] == 0.5


def test_a_task_file_cannot_allow_programs(folder, tmp_path) -> None:
    task = tmp_path / "functions.yaml"
    task.write_text(CODE + "run_code: true\n")
    assert call("eval", str(folder), "--suite", str(task)) == 2


def test_a_sandbox_that_keeps_nothing_apart_is_told(folder, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("tunesmith.evaluate.suite.check_sandbox", lambda: False)
    task = tmp_path / "functions.yaml"
    task.write_text(CODE)
    assert call("eval", str(folder), "--suite", str(task), "--run-code", "--json") == 0
    assert [one["code"] for one in json.loads(capsys.readouterr().out)["warnings"]] == ["W455"]
