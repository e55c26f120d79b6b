"""metrics.jsonl: whole lines, healing, resumes, and readers that forgive."""

import json
import math
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith import faults
from tunesmith.errors import MachineError
from tunesmith.track.metrics import JsonLines
from tunesmith.track.reader import current, last_rows, latest, number, read_from, read_lines, read_metrics, series


@pytest.fixture(autouse=True)
def _no_faults_left():
    yield
    faults.arm("")


def row(step: int, attempt: int = 1, **more):
    return {"step": step, "tokens": step * 10, "wall": 1.0, "attempt": attempt, "train/loss": 1 / step, **more}


def write_attempt(path, first: int, last: int, attempt: int) -> None:
    file = JsonLines(path)
    if attempt > 1:
        file.write({"event": "resume", "step": first, "attempt": attempt})
    for step in range(first, last + 1):
        file.write(row(step, attempt))
    file.close()


def test_each_row_is_there_when_write_returns(tmp_path):
    file = JsonLines(tmp_path / "m.jsonl")
    for step in range(1, 4):
        file.write(row(step))
        assert [each["step"] for each in read_lines(file.path)] == list(range(1, step + 1))
    assert file.offset() == file.path.stat().st_size


def test_non_finite_numbers_are_words_that_read_back(tmp_path):
    file = JsonLines(tmp_path / "m.jsonl")
    file.write(row(1, loss=math.nan, up=math.inf, down=-math.inf, nested={"x": [math.nan]}))
    text = file.path.read_text()
    json.loads(text, parse_constant=lambda word: pytest.fail(word))
    (read,) = read_lines(file.path)
    assert math.isnan(number(read["loss"]))
    assert (number(read["up"]), number(read["down"])) == (math.inf, -math.inf)
    assert number("other") is None
    assert number(True) is None


def test_r17_a_half_written_line_is_healed_and_no_step_is_missing_or_doubled(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_attempt(path, 1, 30, 1)
    whole = path.read_bytes()
    cut = whole.rindex(b"\n", 0, len(whole) - 1) + 9  # in the middle of the row of step 30
    path.write_bytes(whole[:cut])
    write_attempt(path, 21, 60, 2)
    rows = read_metrics(path)
    assert [each["step"] for each in rows] == list(range(1, 61))
    assert [each["attempt"] for each in rows] == [1] * 20 + [2] * 40
    assert path.read_bytes().startswith(whole[:cut] + b"\n")


def test_r17_a_step_written_but_not_saved_is_replaced(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_attempt(path, 1, 50, 1)
    write_attempt(path, 41, 45, 2)
    write_attempt(path, 31, 120, 3)
    rows = read_metrics(path)
    assert [each["step"] for each in rows] == list(range(1, 121))
    assert {each["attempt"] for each in rows[30:]} == {3}


def test_r17_a_lost_resume_row_loses_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_attempt(path, 1, 50, 1)
    write_attempt(path, 41, 60, 2)
    path.write_bytes(b"".join(line for line in path.read_bytes().splitlines(True) if b"resume" not in line))
    assert [each["step"] for each in read_metrics(path)] == list(range(1, 61))


def test_several_rows_of_one_step_stay(tmp_path):
    rows = [row(1), row(2), {**row(2), "eval/loss": 0.5}, row(3)]
    assert current(rows) == rows


@settings(max_examples=200, deadline=None)
@given(
    attempts=st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 30)), min_size=1, max_size=5),
    cut=st.integers(0, 60),
)
def test_any_history_of_resumes_and_cuts_gives_each_step_once(tmp_path_factory, attempts, cut):
    path = tmp_path_factory.mktemp("history") / "metrics.jsonl"
    last = 0
    expected: dict[int, int] = {}
    for attempt, (back, steps) in enumerate(attempts, start=1):
        first = 1 if attempt == 1 else max(1, last + 1 - back % (last + 1))
        if attempt > 1:
            # a power cut tears the last line; a resume never starts after a row that is torn
            whole = path.read_bytes()
            torn = whole[: len(whole) - min(cut, len(whole.splitlines(True)[-1]))]
            path.write_bytes(torn)
            first = min(first, last)
        last = first + steps - 1
        write_attempt(path, first, last, attempt)
        expected = {step: number for step, number in expected.items() if step < first}
        expected |= dict.fromkeys(range(first, last + 1), attempt)
    assert {each["step"]: each["attempt"] for each in read_metrics(path)} == expected
    assert len(read_metrics(path)) == len(expected)


@settings(max_examples=300, deadline=None)
@given(noise=st.lists(st.binary(max_size=40), max_size=20))
def test_readers_survive_any_bytes(tmp_path_factory, noise):
    path = tmp_path_factory.mktemp("noise") / "metrics.jsonl"
    path.write_bytes(b"\n".join(noise))
    file = JsonLines(path)
    file.write(row(5))
    read_metrics(path)
    assert list(read_lines(path))[-1]["step"] == 5
    assert last_rows(path)[-1]["step"] == 5


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=10), st.floats() | st.text(max_size=20) | st.integers(-(2**60), 2**60)))
def test_any_row_is_one_line_and_reads_back(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("rows") / "m.jsonl"
    file = JsonLines(path)
    file.write(values)
    file.close()
    assert path.read_bytes().count(b"\n") == 1
    (read,) = read_lines(path)
    for name, value in values.items():
        if isinstance(value, float):
            found = number(read[name])
            assert found is not None
            assert found == value or (math.isnan(found) and math.isnan(value))
        else:
            # lone surrogates have no UTF-8 form and become question marks
            text = value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
            assert read[name] == text


def test_following_a_file_gives_every_row_once_and_waits_for_the_end_of_a_line(tmp_path):
    path = tmp_path / "m.jsonl"
    assert read_from(path, 0) == ([], 0)
    line = json.dumps(row(1)).encode() + b"\n"
    seen, offset = [], 0
    with path.open("ab", buffering=0) as file:
        for byte in line * 3:
            file.write(bytes([byte]))
            rows, offset = read_from(path, offset)
            seen += rows
    assert len(seen) == 3
    assert offset == path.stat().st_size


def test_the_end_of_a_long_file_is_read_alone(tmp_path):
    path = tmp_path / "m.jsonl"
    write_attempt(path, 1, 2000, 1)
    rows = last_rows(path, size=1000)
    assert rows[-1]["step"] == 2000
    assert len(rows) < 15
    assert [each["step"] for each in rows] == list(range(2001 - len(rows), 2001))


def test_ten_thousand_rows_are_written_and_read_quickly(tmp_path):
    path = tmp_path / "m.jsonl"
    started = time.process_time()
    write_attempt(path, 1, 10_000, 1)
    written = time.process_time() - started
    rows = read_metrics(path)
    assert written < 2.0  # 0.2 ms per row leaves room for a loaded machine; 20 us are usual
    assert time.process_time() - started < 4.0
    steps, losses = series(rows, "train/loss")
    assert steps == list(range(1, 10_001))
    assert losses[-1] == pytest.approx(1e-4)
    assert latest(rows)["train/loss"] == losses[-1]


@pytest.mark.parametrize("name", ["ENOSPC", "EROFS", "EIO", "EDQUOT"])
def test_a_full_disk_is_told_in_words_and_the_next_row_is_whole(tmp_path, name):
    file = JsonLines(tmp_path / "metrics.jsonl")
    file.write(row(1), 1)
    faults.arm(f"log.before_write@step=2:errno:{name}")
    with pytest.raises(MachineError) as caught:
        file.write(row(2), 2)
    assert caught.value.diagnostic.code == "E194"
    assert "metrics.jsonl" in caught.value.diagnostic.message
    file.write(row(3), 3)
    assert [each["step"] for each in read_lines(file.path)] == [1, 3]


def test_a_row_cut_by_a_limit_is_healed_by_the_next_one(tmp_path):
    program = """
import resource, sys
from pathlib import Path
from tunesmith.errors import MachineError
from tunesmith.track.metrics import JsonLines
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
file = JsonLines(path)
file.write({"step": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
try:
    file.write({"step": 2, "text": "x" * 50})
except MachineError as error:
    print(error.diagnostic.message)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
file.write({"step": 3})
"""
    path = tmp_path / "m.jsonl"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert "larger than" in done.stdout
    assert path.read_bytes().count(b"\n") == 3
    assert [each["step"] for each in read_lines(path)] == [1, 3]


def test_rows_are_synced_when_asked_and_not_before(tmp_path):
    trace = tmp_path / "trace.txt"
    file = JsonLines(tmp_path / "m.jsonl")
    faults.arm(f"*:trace:{trace}")
    file.write(row(1), 1)
    file.sync(1)
    points = [line.split()[0] for line in trace.read_text().splitlines()]
    assert points == ["log.before_write", "log.after_write", "log.before_flush", "log.after_flush"]
