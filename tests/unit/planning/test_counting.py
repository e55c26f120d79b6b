import json
from pathlib import Path

import numpy as np
import pytest
from tests.tiny import tiny_tokenizer

from tunesmith.data.config import DataConfig, SourceConfig
from tunesmith.data.prepared import prepare
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import DataError, UsageError
from tunesmith.planning import counting
from tunesmith.planning.counting import count_data
from tunesmith.types import Task


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))


def conversations(path: Path, count: int, words: int = 3) -> Path:
    lines = (
        {
            "messages": [
                {"role": "user", "content": f"question {number} " + "why " * (number % 7)},
                {"role": "assistant", "content": "because " * words},
            ]
        }
        for number in range(count)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def settings(*paths, **changes):
    return DataConfig(train=tuple(SourceConfig(path=str(path)) for path in paths), **changes)


def test_a_small_file_is_counted_whole(tmp_path, tokenizer):
    counted = count_data(settings(conversations(tmp_path / "a.jsonl", 40)), tokenizer)
    assert (counted.records, counted.examples, counted.looked_at) == (40, 40, None)
    assert 0 < counted.scored_share < 1


def test_of_a_longer_file_300_records_are_tokenised_from_all_over_it(tmp_path, tokenizer):
    data = settings(conversations(tmp_path / "a.jsonl", 3500))
    estimated = count_data(data, tokenizer)
    assert (estimated.records, estimated.examples, estimated.looked_at) == (3500, 3500, 300)
    exact = prepare(data.train, data, tokenizer)
    assert estimated.mean_length == pytest.approx(exact.lengths.mean(), rel=0.03)
    share = exact.report.trained_tokens / exact.report.tokens
    assert estimated.scored_share == pytest.approx(share, rel=0.03)


def test_prepared_data_is_counted_exactly(tmp_path, tokenizer):
    data = settings(conversations(tmp_path / "a.jsonl", 400), conversations(tmp_path / "b.jsonl", 100, words=9))
    prepared = prepare(data.train, data, tokenizer)
    counted = count_data(data, tokenizer)
    assert counted.looked_at is None
    assert counted.examples == len(prepared)
    assert counted.mean_length == pytest.approx(prepared.lengths.mean())


def test_weights_mix_sources(tmp_path, tokenizer):
    paths = [conversations(tmp_path / "a.jsonl", 40), conversations(tmp_path / "b.jsonl", 20, words=30)]
    sources = (SourceConfig(path=str(paths[0]), weight=0.5), SourceConfig(path=str(paths[1]), weight=3))
    counted = count_data(DataConfig(train=sources), tokenizer)
    assert counted.examples == 20 + 60
    drawn = counted.draw(4000, np.random.default_rng(0))
    assert drawn[:, 0].mean() == pytest.approx(counted.mean_length, rel=0.05)
    assert (drawn[:, 0] == drawn[:, 1]).all()


def test_a_file_too_large_to_read_is_estimated_from_lines_all_over_it(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(counting, "SMALL", 50_000)
    path = conversations(tmp_path / "a.jsonl", 5000)
    counted = count_data(settings(path), tokenizer)
    assert counted.records == pytest.approx(5000, rel=0.03)
    assert 200 < counted.looked_at <= 300


def test_a_large_csv_is_estimated_from_its_beginning(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(counting, "SMALL", 50_000)
    path = tmp_path / "a.csv"
    rows = "".join(f"question {number:05},answer {number:05} {'so ' * 20}\n" for number in range(5000))
    path.write_text("prompt,completion\n" + rows, encoding="utf-8")
    assert 1000 < count_data(settings(path), tokenizer).records < 15_000


def test_too_long_records_are_a_share(tmp_path, tokenizer):
    path = conversations(tmp_path / "a.jsonl", 10)
    with path.open("a") as file:
        long = [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "yes"}]
        file.write(json.dumps({"messages": long}) + "\n")
    counted = count_data(settings(path, max_length=100), tokenizer)
    assert counted.overlong == pytest.approx(1 / 11)
    assert counted.examples == pytest.approx(10)


def test_d25_all_too_long_says_so(tmp_path, tokenizer):
    path = conversations(tmp_path / "a.jsonl", 10, words=50)
    with pytest.raises(DataError, match=r"E078[\s\S]*overlong=split"):
        count_data(settings(path, max_length=16), tokenizer)


def test_bad_records_stop_a_plan_as_they_stop_a_run(tmp_path, tokenizer):
    path = conversations(tmp_path / "a.jsonl", 10)
    with path.open("a") as file:
        file.write('{"messages": [{"role": "user"')
    with pytest.raises(DataError) as caught:
        count_data(settings(path), tokenizer)
    assert caught.value.diagnostic.where.line == 11


def test_no_data_at_all_is_a_usage_error(tokenizer):
    with pytest.raises(UsageError, match="E025"):
        count_data(DataConfig(), tokenizer)


def test_a_long_document_is_estimated_from_its_beginning(tmp_path, tokenizer, monkeypatch):
    path = tmp_path / "book.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 1000, encoding="utf-8")
    data = settings(path, overlong="split", max_length=64)
    whole = count_data(data, tokenizer)
    monkeypatch.setattr(counting, "CHARACTERS", 10_000)
    assert count_data(data, tokenizer).examples == pytest.approx(whole.examples, rel=0.05)


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(count, rare=None, prompts=97):
    """Feedback; every `rare`-th answer is bad."""
    return [
        {"prompt": f"Q {index % prompts}", "completion": f"yes {index}", "label": rare is None or index % rare != 0}
        for index in range(count)
    ]


PAIRS = [{"prompt": f"Q {index}", "chosen": f"yes {index}", "rejected": f"yes {index}"} for index in range(400)]
TIES = [{"prompt": f"Q {index}", "answers": ["a", "b"], "scores": [1, 1]} for index in range(400)]
MISMATCHES = Task("feedback", mismatches=True)


@pytest.mark.parametrize(
    ("rows", "task", "code"),
    [
        (PAIRS[:40], Task("pair"), "E215"),
        (PAIRS, Task("pair"), "E215"),
        (TIES[:40], Task("ranking"), "E215"),
        (TIES, Task("ranking"), "E215"),
        (answers(40), Task("feedback"), "E216"),
        (answers(40, 2, prompts=1), MISMATCHES, "E280"),
    ],
)
def test_data_that_cannot_train_is_refused(tmp_path, tokenizer, rows, task, code):
    path = written(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError) as caught:
        count_data(settings(path), tokenizer, task)
    found = caught.value.diagnostic
    assert (found.code, found.where.file, found.where.line) == (code, str(path), 1)


@pytest.mark.parametrize(
    ("rows", "task", "code"),
    [(answers(400), Task("feedback"), "E216"), (answers(400, 2, prompts=1), MISMATCHES, "E280")],
)
def test_what_only_some_records_say_is_a_doubt(tmp_path, tokenizer, rows, task, code):
    counted = count_data(settings(written(tmp_path / "a.jsonl", rows)), tokenizer, task)
    (doubt,) = counted.doubts
    assert (doubt.code, doubt.level) == (code, "warning")
    assert "seen in 300 of about 400 records" in str(doubt)


def test_records_of_a_large_file_are_told_by_the_file_alone(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(counting, "SMALL", 1000)
    path = written(tmp_path / "a.jsonl", PAIRS)
    with pytest.raises(DataError, match="E215") as caught:
        count_data(settings(path), tokenizer, Task("pair"))
    assert (caught.value.diagnostic.where.file, caught.value.diagnostic.where.line) == (str(path), None)
    assert "lines" not in str(caught.value)
    assert str(path) in caught.value.diagnostic.fixes[1].command


@pytest.mark.parametrize("first", [False, True])
def test_labels_and_ratings_are_counted_with_the_weights(tmp_path, tokenizer, first):
    rows = answers(40, 4)
    data = DataConfig(
        train=(
            SourceConfig(path=str(written(tmp_path / "a.jsonl", rows)), weight=2),
            SourceConfig(path=str(written(tmp_path / "b.jsonl", rows[1:3]))),
        )
    )
    if first:
        prepare(data.train, data, tokenizer, None, Task("feedback"))
    counted = count_data(data, tokenizer, Task("feedback"))
    assert counted.labels == pytest.approx({"good": 62, "bad": 20})
    pairs = [{**PAIRS[index], "rejected": "no"} | ({"margin": 1} if index % 4 == 0 else {}) for index in range(40)]
    data = settings(written(tmp_path / "c.jsonl", pairs))
    if first:
        prepare(data.train, data, tokenizer, None, Task("pair"))
    assert count_data(data, tokenizer, Task("pair")).rated_share == pytest.approx(0.25)


def test_too_long_pairs_are_told_of_a_length_that_covers_them(tmp_path, tokenizer):
    rows = [{**row, "prompt": "why " * 50, "rejected": "no"} for row in PAIRS[:20]]
    data = settings(written(tmp_path / "a.jsonl", rows), max_length=16)
    with pytest.raises(DataError, match="E078") as caught:
        count_data(data, tokenizer, Task("pair"))
    (changes, *_) = (fix.set for fix in caught.value.diagnostic.fixes)
    assert count_data(data.model_copy(update={"max_length": changes["data.max_length"]}), tokenizer, Task("pair"))
