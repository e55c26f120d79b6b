"""Methods side by side on a tiny model: what is trained, measured, kept, refused and drawn."""

import json
from pathlib import Path

import pytest
from tests.records import write_records
from tests.tiny import tiny_model_folder

from tunesmith.cli.main import run
from tunesmith.comparing.entries import Entry, listed, named
from tunesmith.comparing.methods import Budget, kept, size_of
from tunesmith.comparing.report import SHORT, cells, markdown, short
from tunesmith.comparing.rows import BASE, Row, front
from tunesmith.errors import UsageError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def call(given: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        run(given)
    return int(ended.value.code or 0)


def words(tmp_path: Path, *more: str) -> list[str]:
    model = tiny_model_folder(tmp_path / "m", hidden_size=32)
    train, test = (write_records(tmp_path / f"{seed}.jsonl", "sequence", 8, seed=seed) for seed in (0, 1))
    settings = [f"model.path={model}", f"data.train={train}", f"evaluate.data={test}", "evaluate.max_new_tokens=4"]
    settings += ["train.steps=5", "train.sequences_per_step=4", "evaluate.metrics=[loss,exact_match]"]
    return ["compare", "methods", "sft", *settings, "--general", str(test), *more]


def test_methods_are_trained_measured_and_kept(tmp_path, capsys):
    methods = tmp_path / "methods.yaml"
    methods.write_text(
        "methods:\n"
        "- {name: LoRA 4, set: [model.adapter=lora, model.adapter.rank=4, train.optimizer.lr=1e-2]}\n"
        "- {name: norms, set: [model.adapter=norms]}\n"
        "- {name: DoRA 999, set: [model.adapter=dora, model.adapter.rank=999]}\n"
    )
    given = [*words(tmp_path), "--list", str(methods), "--rate-scale", "10", "--json"]
    assert call(given) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    base, lora, norms, refused = told["methods"]
    assert base["name"] == BASE
    assert lora["trainable"] == 4 * 2 * (32 + 32 + 32 + 16 + 32 + 16 + 32 + 32 + 3 * (32 + 128))
    assert lora["rate"] == 1e-2
    assert norms["rate"] == pytest.approx(5e-3)
    for row in (lora, norms):
        assert row["steps"] == 5
        assert row["tokens_per_cpu_second"] > 0
        assert row["peak_bytes"] > 1e8
        assert row["metric"] == "exact_match"
        assert row["forgotten"] == pytest.approx(row["general"] - base["general"])
        assert row["general"] == pytest.approx(row["task_loss"])  # the same records
    assert lora["general"] < base["general"]
    assert lora["file_bytes"] < norms["file_bytes"]
    assert "999" in refused["problem"]
    assert (tmp_path / "comparison" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "LoRA 4" in (tmp_path / "comparison" / "comparison.md").read_text()
    metrics = tmp_path / "comparison" / "runs" / "lora-4" / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns
    assert call(given) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == told
    assert metrics.stat().st_mtime_ns == before
    rows = sorted(path.stem for path in (tmp_path / "comparison").glob("*.json"))
    assert rows == ["base-model", "comparison", "lora-4", "norms"]


def test_a_row_is_kept_while_recipe_and_data_are_what_they_were(tmp_path):
    data, file = write_records(tmp_path / "d.jsonl", "sequence", 4), tmp_path / "own.yaml"
    file.write_text(f"version: 1\ndata: {{train: [{data}]}}\n")
    budget, entry, calls = Budget(str(file), (), tmp_path), Entry("LoRA", ()), []

    def work(problem: str | None = None) -> Row:
        calls.append(problem)
        return Row("LoRA", problem=problem)

    kept(budget, entry, lambda: work("no memory"))
    kept(budget, entry, work)
    kept(budget, entry, work)
    assert calls == ["no memory", None]  # what failed is tried again
    file.write_text(file.read_text() + "train: {steps: 3}\n")
    kept(budget, entry, work)
    write_records(data, "sequence", 5)
    kept(budget, entry, work)
    kept(budget, entry, work)
    assert len(calls) == 4


def test_a_task_without_data_is_refused(tmp_path, capsys):
    given = [word for word in words(tmp_path, "--methods", "lora") if not word.startswith("evaluate.data")]
    assert call(given) == 2
    assert "error[E402]" in capsys.readouterr().err


def test_a_new_model_is_refused(tmp_path, capsys):
    given = [word for word in words(tmp_path, "--methods", "full") if not word.startswith("model.path")]
    assert call([*given, "model.fresh.layers=2", "model.adapter=full"]) == 2
    assert "error[E397]" in capsys.readouterr().err


def test_names_become_settings_and_unknown_ones_are_refused_with_the_nearest():
    assert [entry.settings[0] for entry in named(("dora", "lora+"))] == ["model.adapter=dora", "model.adapter=lora"]
    with pytest.raises(UsageError) as caught:
        named(("dorra",))
    assert caught.value.diagnostic.code == "E400"
    assert "dora" in str(caught.value.diagnostic.fixes[0])
    assert Entry("LoRA+ r8", ()).slug == "lora-plus-r8"


@pytest.mark.parametrize(
    "text",
    [
        "methods: []",
        "ways: [1]",
        "methods: [{name: a}]",
        "methods: [{name: a, set: [], more: 1}]",
        "methods: [{name: a, set: lora}]",
        "methods: [{name: a, set: []}, {name: A, set: []}]",
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, text):
    path = tmp_path / "list.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        listed(path)
    assert caught.value.diagnostic.code == "E401"
    assert str(path) in str(caught.value)


def row(name: str, score: float, forgotten: float, peak: int) -> Row:
    return Row(name, score=score, low=score, high=score, forgotten=forgotten, peak_bytes=peak)


def test_the_front_is_what_no_other_method_beats():
    rows = [
        row("all", 0.9, 0.5, 4),
        row("lean", 0.8, 0.1, 1),
        row("beaten", 0.8, 0.2, 2),
        row("like lean", 0.8, 0.1, 1),
        row(BASE, 1.0, 0.0, 0),
        Row("refused", problem="why"),
    ]
    assert front(rows) == ("all", "lean", "like lean")


def test_the_table_says_why_a_method_was_not_trained(tmp_path):
    assert cells(Row("oft", problem="blocks do not divide"))[1] == "not trained: blocks do not divide"
    assert short(Row("oft", problem="blocks do not divide"))[1] == "not trained: blocks do not divide"
    assert dict(zip(SHORT, short(row("lean", 0.8, 0.1, 10**9)), strict=True))["forgotten"] == "+0.100"
    text = markdown([row("lean", 0.8, 0.1, 10**9)])
    assert "| **lean** |" in text
    assert "1.00" in text
    assert size_of(tmp_path) == 0
