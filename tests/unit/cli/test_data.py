"""`data` as a user meets it, with records that judge."""

import json
from pathlib import Path

import pytest
from tests.command import call
from tests.tiny import tiny_model_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def recipe(tmp_path, monkeypatch, folder) -> str:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": [{"role": "user", "content": f"Where {index}?"}], "chosen": "In Paris.", "rejected": "In Lyon."}
        for index in range(4)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("a.yaml").write_text(f"model: {{path: '{folder}'}}\ndata: {{train: pairs.jsonl}}\nobjective: dpo\n")
    return "a.yaml"


def test_preview_and_check_take_the_task_of_the_objective(recipe, capsys):
    assert call("data", "preview", recipe, "-n", "1") == 0
    shown = capsys.readouterr().out
    assert "chosen, " in shown
    assert "⟪In⟫" in shown
    assert call("data", "preview", recipe, "-n", "2", "--json", "--html", "a.html") == 0
    told = json.loads(capsys.readouterr().out)
    assert [answer["name"] for answer in told["examples"][1]["answers"]] == ["chosen", "rejected"]
    assert "rejected" in Path("a.html").read_text()
    assert call("data", "check", recipe) == 0
    assert "saved by shared prompts" in capsys.readouterr().out
    assert call("data", "check", recipe, "objective=kto") == 4
    captured = capsys.readouterr()
    assert "E210" in captured.err
    assert "--to feedback" in captured.err


def test_classes_are_found_for_a_classifier(recipe, capsys):
    rows = [{"text": f"text {index}", "label": "ab"[index % 2]} for index in range(4)]
    Path("labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert call("data", "check", recipe, "objective=classify", "data.train=labels.jsonl") == 0
    assert "label a" in capsys.readouterr().out


def test_convert_prints_counts_and_keeps_existing_files(recipe, capsys):
    assert call("data", "convert", "pairs.jsonl", "--to", "feedback") == 0
    assert "pairs.feedback.jsonl: 8 records of 4 (pair)" in capsys.readouterr().out
    assert call("data", "convert", "pairs.jsonl", "--to", "feedback") == 2
    assert "E053" in capsys.readouterr().err
    assert call("data", "convert", "pairs.jsonl", "--to", "feedback", "--force", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["read"], told["written"], told["left_out"]) == (4, 8, {})
    assert call("data", "convert", "pairs.feedback.jsonl", "--to", "pairs", "-o", "new.jsonl") == 0
    assert Path("new.jsonl").read_text().count("\n") == 4
    assert call("data", "check", recipe, "data.train=new.jsonl") == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--to", "pair"], "did you mean pairs?"),
        (["--to", "sft", "--from", "pear"], "did you mean pairs?"),
        (["--to", "pairs", "--adjacent", "--best-worst"], "exclude each other"),
        (["--to", "pairs", "--column", "prompt"], "no FIELD=COLUMN"),
        (["--to", "sft", "--margin", "1"], "--margin has no meaning"),
        (["--to", "sft", "-o", "missing/a.jsonl"], "E194"),
    ],
)
def test_convert_refuses_what_it_cannot_do(recipe, capsys, words, told):
    assert call("data", "convert", "pairs.jsonl", *words) in (2, 5)
    assert told in capsys.readouterr().err


def test_fix_drops_equal_answers_when_asked(recipe, capsys):
    with Path("pairs.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "a", "chosen": "b", "rejected": "b"}) + "\n")
    assert call("data", "check", recipe) == 4
    assert "tunesmith data fix pairs.jsonl --drop-identical" in capsys.readouterr().err
    assert call("data", "fix", "pairs.jsonl", "--drop-identical") == 0
    assert "1 records with equal answers left out" in capsys.readouterr().out
    assert call("data", "check", recipe, "data.train=pairs.fixed.jsonl") == 0


def feedback(name: str, good: int, bad: int) -> Path:
    rows = [{"prompt": f"Q {index}", "completion": f"A {index}", "label": index < good} for index in range(good + bad)]
    path = Path(name)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def findings(capsys, *words: str) -> dict[str, dict]:
    code = call("data", "check", *words, "--json")
    told = json.loads(capsys.readouterr().out)
    assert code == (4 if any(each["level"] == "error" for each in told["findings"]) else 0)
    return {each["code"]: each for each in told["findings"]}


def test_check_tells_of_labels_what_a_plan_tells(recipe, capsys):
    feedback("a.jsonl", 57, 3)
    words = [recipe, "objective=kto", "data.train=a.jsonl", "train.sequences_per_step=8"]
    found = findings(capsys, *words)
    assert call("plan", *words, "--json") == 0
    planned = {each["code"]: each for each in json.loads(capsys.readouterr().out)["problems"]}
    for code in ("W216", "W217"):
        assert found[code] == planned[code]
    assert (
        not {"W216", "W217"}
        & findings(capsys, *words[:-1], "train.sequences_per_step=20", "objective.lambda_bad=16").keys()
    )


def test_check_weighs_sources_as_an_epoch_does(recipe, capsys):
    feedback("a.jsonl", 40, 0)
    feedback("b.jsonl", 0, 10)
    for weight, codes in ((1, {"W217"}), (3.5, set())):
        text = f"objective: kto\ndata: {{train: [a.jsonl, {{path: b.jsonl, weight: {weight}}}]}}\n"
        Path("mix.yaml").write_text(Path(recipe).read_text().splitlines()[0] + "\n" + text)
        assert findings(capsys, "mix.yaml").keys() & {"W216", "W217"} == codes


def test_check_tells_of_pairs_without_ratings(recipe, capsys):
    words = [recipe, "objective=reward", "objective.rating_margin=1"]
    assert findings(capsys, *words)["E224"]["level"] == "error"
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    rows[0]["margin"] = 2.0
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "3 of 4 pairs" in findings(capsys, *words)["W218"]["message"]
