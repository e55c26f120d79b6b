"""What the harness tells becomes results by exercise, and local files the data of named tasks; without the harness."""

import json
import math
from pathlib import Path

import pytest

from tunesmith.errors import DataError, MachineError, UsageError
from tunesmith.evaluate.comparison import report_on
from tunesmith.evaluate.lm_harness import opening
from tunesmith.evaluate.lm_harness.local import check_folder, data_for
from tunesmith.evaluate.lm_harness.programs import judge, pass_at
from tunesmith.evaluate.lm_harness.results import exercises_of, to_runs
from tunesmith.evaluate.told import markdown

ARC = {"test_split": "test", "validation_split": "validation", "training_split": "train", "fewshot_split": "train"}


def row(number: int, resps: list, way: str = "none", **figures) -> dict:
    asked = [[f"Question {number}", f" choice {at}"] for at in range(len(resps))]
    return {
        "doc_id": number,
        "doc": {"question": f"Question {number}"},
        "target": 1,
        "arguments": asked,
        "resps": resps,
        "filter": way,
        "metrics": list(figures),
        **figures,
    }


def choices(name: str, right: list[int]) -> dict:
    rows = [
        row(at, [[(-2.0, False)], [(-3.0 + 2 * one, False)]], acc=float(one), f1=(1, one))
        for at, one in enumerate(right)
    ]
    return {
        "samples": {name: rows},
        "configs": {name: {"output_type": "multiple_choice"}},
        "higher_is_better": {name: {"acc": True, "f1": True}},
        "results": {name: {"acc,none": sum(right) / len(right), "f1,none": 0.5, "acc_stderr,none": "N/A"}},
    }


def together(*found: dict) -> dict:
    return {key: {name: value for one in found for name, value in one[key].items()} for key in found[0]}


def test_choices_become_results_and_figures_of_the_set_are_told() -> None:
    found = choices("arc", [1, 0, 1])
    [run] = to_runs(found, {"arc": ("arc",)}, frozenset())
    assert [measure.name for measure in run.measures] == ["acc"]
    assert run.measures[0].binary
    assert [one.scores["acc"] for one in run.results] == [1, 0, 1]
    first = run.results[0]
    assert (first.name, first.prompt, first.answer, first.reference) == (
        "arc-1",
        "Question 0",
        " choice 1",
        " choice 1",
    )
    assert first.detail["logprobs"] == [-2.0, -1.0]
    assert [(one.code, "f1 (0.5)" in one.message) for one in run.warnings] == [("W454", True)]
    [asked] = exercises_of([run], found).values()
    assert [one.fields["question"] for one in asked] == ["Question 0", "Question 1", "Question 2"]
    report = report_on("harness", {"a": [run], "b": to_runs(choices("arc", [1, 1, 1]), {"arc": ("arc",)}, frozenset())})
    assert report.differences[0].better == 1


def test_a_group_over_all_exercises_is_one_task_with_categories() -> None:
    found = together(choices("one", [1, 0]), choices("two", [1, 1, 1]))
    groups = {"both": ("one", "two")}
    [run] = to_runs(found, groups, frozenset({"both"}))
    assert (run.task.name, len(run.results)) == ("both", 5)
    [summary] = [one for one in report_on("x", {"m": [run]}).summaries if one.main]
    assert summary.score.value == pytest.approx(0.8)
    assert {name: score.value for name, score in summary.categories.items()} == {"one": 0.5, "two": 1.0}
    assert [run.task.name for run in to_runs(found, groups, frozenset())] == ["one", "two"]


def test_filters_lists_and_hundreds_each_have_their_measure() -> None:
    rows = []
    for way, shift in (("strict", 0.0), ("loose", 1.0)):
        for at in range(2):
            figures = {"exact_match": shift, "parts": [True, False], "bleu": 50.0 + at}
            rows.append(row(at, [["an answer"]], way, **figures))
    told = {"exact_match,strict": 0.0, "exact_match,loose": 1.0}
    told |= {f"parts,{way}": 0.5 for way in ("strict", "loose")} | {f"bleu,{way}": 50.5 for way in ("strict", "loose")}
    found = {
        "samples": {"g": rows},
        "configs": {"g": {"output_type": "generate_until"}},
        "higher_is_better": {"g": {"bleu": False}},
        "results": {"g": told},
    }
    [run] = to_runs(found, {"g": ("g",)}, frozenset())
    assert [one.name for one in run.measures][:2] == ["exact_match_strict", "exact_match_loose"]
    assert run.results[0].scores["bleu_strict"] == 0.5
    assert run.results[0].weights == {"parts_strict": 2.0, "parts_loose": 2.0}
    assert next(one for one in run.measures if one.name == "bleu_strict").lower
    assert run.results[0].answer == "an answer"


def test_rolled_texts_have_the_perplexity_of_the_harness() -> None:
    pairs = [(-20.0, 5), (-90.0, 30)]
    rows = [
        {**row(at, [[nats]], word_perplexity=(nats, words), bits_per_byte=(nats, 4 * words)), "target": "a text"}
        for at, (nats, words) in enumerate(pairs)
    ]
    per_word, bits = 110 / 35, 110 / 140 / math.log(2)
    found = {
        "samples": {"w": rows},
        "configs": {"w": {"output_type": "loglikelihood_rolling"}},
        "higher_is_better": {"w": {"word_perplexity": False, "bits_per_byte": False}},
        "results": {"w": {"word_perplexity,none": math.exp(per_word), "bits_per_byte,none": bits}},
    }
    [run] = to_runs(found, {"w": ("w",)}, frozenset())
    assert [one.name for one in run.measures] == ["bits_per_byte", "word_loss"]
    report = report_on("x", {"m": [run]})
    figures = {one.measure: one.score.value for one in report.summaries}
    assert figures == pytest.approx(
        {"bits_per_byte": bits, "word_loss": per_word, "word_perplexity": math.exp(per_word)}
    )
    assert "word perplexity | m | 23.17" in markdown(report)


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"question": "x"}) + "\n")
    return path


def test_files_take_the_place_of_a_tasks_data(tmp_path) -> None:
    assert data_for("arc", ARC, None, None) == {}
    assert data_for("arc", ARC, None, tmp_path) == {}
    single = write(tmp_path / "arc.jsonl")
    found = data_for("arc", ARC, None, tmp_path)
    assert found["dataset_kwargs"] == {"data_files": {"test": str(single)}}
    gone = ("training_split", "validation_split", "fewshot_split")
    assert {key: found[key] for key in gone} == dict.fromkeys(gone)
    train = write(tmp_path / "arc" / "train.jsonl")
    found = data_for("arc", ARC, None, tmp_path)
    assert found["dataset_kwargs"] == {"data_files": {"test": str(single), "train": str(train)}}
    assert (found["dataset_path"], found["validation_split"], "training_split" in found) == ("json", None, False)


def test_data_files_beside_a_task_file_are_found(tmp_path) -> None:
    data = write(tmp_path / "own.jsonl")
    config = {"dataset_kwargs": {"data_files": {"test": ["own.jsonl", "hf://elsewhere"]}, "split": "x"}}
    found = data_for("own-task", config, tmp_path / "own.yaml", tmp_path)
    assert found["dataset_kwargs"] == {"data_files": {"test": [str(data), "hf://elsewhere"]}, "split": "x"}
    assert data_for("own-task", config, tmp_path.parent / "other.yaml", tmp_path) == {}


def test_local_data_that_do_not_fit_are_told(tmp_path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        check_folder(tmp_path / "none")
    write(tmp_path / "arc" / "train.jsonl")
    with pytest.raises(DataError) as caught:
        data_for("arc", ARC, None, tmp_path)
    assert "lack the split test" in caught.value.diagnostic.message
    assert caught.value.diagnostic.fixes[0].label.endswith("arc/test.jsonl")
    write(tmp_path / "arc" / "test.csv")
    with pytest.raises(DataError, match="several kinds"):
        data_for("arc", ARC, None, tmp_path)


def test_a_harness_that_is_missing_or_old_is_told_with_the_command(monkeypatch) -> None:
    def absent(name: str) -> str:
        raise opening.PackageNotFoundError(name)

    for found, told in ((absent, "not installed"), (lambda _: "0.4.2", "0.4.13 or newer")):
        monkeypatch.setattr(opening, "version", found)
        with pytest.raises(MachineError, match=told) as caught:
            opening.open_backend()
        assert caught.value.diagnostic.code == "E465"
        assert caught.value.diagnostic.fixes[0].command == "pip install 'tunesmith[harness]'"


def test_programs_are_judged_in_the_sandbox() -> None:
    programs = [["def f(): return 1", "def f(): return 2"], ["def f(): return 1", "def f(): return 1"]]
    figures, passed = judge(programs, ["assert f() == 1"] * 2, [1, 2])
    assert passed == [[True, False], [True, True]]
    assert figures == {"pass@1": 0.75, "pass@2": 1.0}
    assert pass_at(10, 3, 2) == pytest.approx(1 - 21 / 45)
