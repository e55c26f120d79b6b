"""Finding files, collecting faults, limits, lists and fingerprints."""

import json
import os
import time
import tracemalloc
from pathlib import Path

import pytest

from tunesmith.data.config import SourceConfig
from tunesmith.data.sources import find_files, fingerprint_files, read_records, read_source
from tunesmith.data.tally import Tally
from tunesmith.errors import DataError, MachineError, Unsafe

GOOD = b'{"text": "one"}\n{"text": "two"}\n'


def refused(path: Path, kind: type[DataError] | type[Unsafe] = DataError):
    """Read the file to its end and return the error that must come."""
    with pytest.raises(kind) as caught:
        list(read_records(path))
    return caught.value


def refused_bytes(tmp_path: Path, content: bytes, name: str = "a.jsonl"):
    path = tmp_path / name
    path.write_bytes(content)
    error = refused(path)
    assert error.diagnostic.where.file == str(path)
    return error


def values(path: Path) -> list[dict]:
    return [record.value for record in read_records(path)]


def test_d31_nothing_found(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(GOOD)
    (tmp_path / "empty").mkdir()
    for path, words in [
        (tmp_path / "trian.jsonl", "no such file"),
        (tmp_path / "no" / "a.jsonl", "no folder"),
        (tmp_path / "*.csv", "no file matches"),
        (tmp_path / "empty", "no data files"),
        (tmp_path / "empty" / ".." / "**" / "*.csv", "no file matches"),
    ]:
        with pytest.raises(DataError) as caught:
            find_files(str(path))
        assert caught.value.diagnostic.code == "E041"
        assert words in caught.value.diagnostic.message
    with pytest.raises(DataError) as caught:
        find_files(str(tmp_path / "trian.jsonl"))
    assert str(tmp_path / "train.jsonl") in caught.value.diagnostic.fixes[0].label


def test_d31_links_that_loop_and_pipes_do_not_hang(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "once").symlink_to(tmp_path)
    begin = time.perf_counter()
    assert find_files(str(tmp_path)) == [tmp_path / "a.jsonl"]
    assert find_files(str(tmp_path / "**" / "*.jsonl")) == [tmp_path / "a.jsonl"]
    (tmp_path / "self.jsonl").symlink_to(tmp_path / "self.jsonl")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, words in [
        ("self.jsonl", "symbolic links"),
        ("gone.jsonl", "leads nowhere"),
        ("pipe.jsonl", "named pipe"),
    ]:
        with pytest.raises(DataError, match=words):
            find_files(str(tmp_path / name))
        with pytest.raises(DataError):
            list(read_records(tmp_path / name))
    with pytest.raises(DataError):
        find_files(str(tmp_path))
    with pytest.raises(DataError):
        find_files(str(tmp_path / "*.jsonl"))
    with pytest.raises(DataError, match="a device"):
        find_files("/dev/zero")
    assert time.perf_counter() - begin < 5


def test_d31_a_folder_and_a_glob_are_sorted(tmp_path):
    for name in ("b/z.jsonl", "b/a.csv.gz", "a.json", "c.txt", "README.md", ".hidden.jsonl", ".cache/x.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert find_files(str(tmp_path)) == [tmp_path / name for name in ("a.json", "b/a.csv.gz", "b/z.jsonl", "c.txt")]
    assert find_files(str(tmp_path / "b" / "*")) == [tmp_path / "b/a.csv.gz", tmp_path / "b/z.jsonl"]
    (tmp_path / "odd[1].jsonl").write_bytes(b"")
    assert find_files(str(tmp_path / "odd[1].jsonl")) == [tmp_path / "odd[1].jsonl"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "a.jsonl").chmod(0)
    assert "Permission denied" in refused(tmp_path / "a.jsonl").diagnostic.message


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    (tmp_path / "a.xyz").write_bytes(GOOD)
    with pytest.raises(DataError, match=r"\.jsonl"):
        find_files(str(tmp_path / "a.xyz"))


def test_up_to_50_faults_are_collected(tmp_path):
    error = refused_bytes(tmp_path, GOOD + b'{"text": 1,}\n' * 7)
    assert [found.where.line for found in error.diagnostics] == [3, 4, 5, 6, 7, 8, 9]
    error = refused_bytes(tmp_path, GOOD + b'{"text": 1,}\n' * 500)
    assert len(error.diagnostics) == 50


def test_skipped_records_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b'{"text": 1,}\n[1]\n{"text": "x"}{"a": 1}\n{"text": NaN}\n' * 30 + b'{"text": "last"}')
    tally = Tally("skip")
    records = list(read_source(SourceConfig(path=str(path)), tally))
    assert [record.line for record in records] == [1, 2, 123]
    assert tally.records == 3
    assert tally.skipped == {
        "broken JSON": 30,
        "not an object": 30,
        "several objects on one line": 30,
        "number that cannot be kept": 30,
    }
    assert tally.places["not an object"][:2] == [f"{path}:4", f"{path}:8"]


def test_limit_stops_early(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(GOOD)
    source = SourceConfig(path=str(tmp_path))
    found = [(Path(record.file).name, record.line) for record in read_source(source, limit=3)]
    assert found == [("a.jsonl", 1), ("a.jsonl", 2), ("b.jsonl", 1)]


def test_a_fault_in_the_second_file_is_raised_there(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "b.jsonl").write_bytes(b"{")
    with pytest.raises(DataError) as caught:
        list(read_source(SourceConfig(path=str(tmp_path))))
    assert caught.value.diagnostic.where.file == str(tmp_path / "b.jsonl")


def test_a_list_of_objects_keeps_their_lines(tmp_path):
    content = b'\xef\xbb\xbf[ {"a": 1},\r\n\n{"a":\n 2}, {"a": "]"}\n,\n{"a": {}} ]\n'
    (tmp_path / "a.json").write_bytes(content)
    found = [(record.line, record.value["a"]) for record in read_records(tmp_path / "a.json")]
    assert found == [(1, 1), (3, 2), (4, "]"), (6, {})]


def test_a_long_list_is_streamed(tmp_path):
    entries = [{"text": f"{index} " + "word " * 2000, "n": index} for index in range(1000)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(entries, indent=1))
    assert path.stat().st_size > 8 * 2**20
    tracemalloc.start()
    lines = []
    for record, entry in zip(read_records(path), entries, strict=True):
        assert record.value == entry
        lines.append(record.line)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lines == [2 + 4 * index for index in range(1000)]
    assert peak < 6 * 2**20


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b'[{"a": 1},\n]', 2, "a comma with nothing after it"),
        (b'[{"a": 1}\n{"a": 2}]', 2, "want a comma"),
        (b'[{"a": 1},\n{"a": 2}', 2, "ends before the list"),
        (b'[{"a": 1},\n{"a": ', 2, "ends in the middle"),
        (b'[{"a": 1}] \nx', 2, "something follows"),
        (b'\n"a"', 2, "want a list of objects"),
        (b'{\n"a": 1}', 1, "one object over several lines"),
        (b'[{"a": 1},\n{"b": 1, "b": 2}, {"a": NaN}, 3,\n{"a": 1}]', 2, "stands twice"),
    ],
)
def test_faults_of_a_list(tmp_path, content, line, words):
    error = refused_bytes(tmp_path, content, "a.json")
    assert words in error.diagnostic.message
    assert error.diagnostic.where.line == line


def test_single_bad_objects_of_a_list_are_collected(tmp_path):
    error = refused_bytes(tmp_path, b'[{"a": 1},\n{"b": 1, "b": 2}, {"a": NaN}, 3,\n{"a": 1}]', "a.json")
    assert [found.code for found in error.diagnostics] == ["E035", "E036", "E034"]
    assert [found.where.column for found in error.diagnostics][:2] == [10, 25]


def test_a_json_file_of_lines_is_read_as_lines(tmp_path):
    (tmp_path / "a.json").write_bytes(GOOD)
    assert values(tmp_path / "a.json") == [{"text": "one"}, {"text": "two"}]


def test_a_text_file_is_one_document_or_one_per_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbffirst\r\n\r\n  second\n\n")
    assert values(path) == [{"text": "first\n\n  second"}]
    source = SourceConfig(path=str(path), columns={"text": "line"})
    found = [(record.value, record.line) for record in read_source(source)]
    assert found == [({"line": "first"}, 1), ({"line": "  second"}, 3)]


def test_fingerprint_sees_names_bytes_and_order(tmp_path):
    one, two = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    first = fingerprint_files([one, two])
    assert first == fingerprint_files([one, two])
    assert len({first, fingerprint_files([two, one]), fingerprint_files([one])}) == 3
    two.write_bytes(b"3")
    assert first != fingerprint_files([one, two])


def test_hub_names_are_checked_and_the_package_is_named():
    with pytest.raises(DataError, match="owner/name"):
        list(read_source(SourceConfig(path="hub:../secret")))
    try:
        import datasets  # noqa: F401
    except ImportError:
        with pytest.raises(MachineError, match="pip install datasets"):
            list(read_source(SourceConfig(path="hub:owner/name:test")))


def test_reading_is_fast(tmp_path):
    line = json.dumps({"instruction": "word " * 30, "input": "", "output": "some words\n" * 80}).encode() + b"\n"
    (tmp_path / "a.jsonl").write_bytes(line * 20_000)
    begin = time.process_time()
    count = sum(1 for _ in read_records(tmp_path / "a.jsonl"))
    seconds = time.process_time() - begin
    assert count == 20_000
    assert len(line) * count / seconds > 25e6  # bytes per CPU-second; about ten times as fast on an idle machine
