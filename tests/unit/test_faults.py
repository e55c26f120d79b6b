"""Failpoints: parsing, actions, and that every one in the code is known."""

import ast
import errno
import math
import time
from pathlib import Path

import pytest
from tests.hostile import tunesmith as run_command

import tunesmith
from tunesmith import faults
from tunesmith.errors import UsageError
from tunesmith.faults import InjectedFault, arm, fault

CALLS = ("fault", "altered", "spoil")
SOURCE = Path(tunesmith.__file__).parent


@pytest.fixture(autouse=True)
def _disarm():
    yield
    arm("")


def _points_in_the_code() -> set[str]:
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
                assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno}: a failpoint is a literal name"
                found.add(node.args[0].value)
    return found


def test_the_list_holds_exactly_the_failpoints_in_the_code():
    assert _points_in_the_code() == set(faults.POINTS)
    assert len([point for point in faults.POINTS if point.startswith("ckpt.")]) >= 25


def test_nothing_happens_when_nothing_is_armed():
    arm("")
    fault("ckpt.begin", 1)


def test_an_unarmed_failpoint_costs_less_than_a_microsecond():
    arm("")
    best = min(_seconds_for(10_000) for _ in range(5))
    assert best / 10_000 < 1e-6


def _seconds_for(count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        fault("train.step", 1)
    return time.perf_counter() - start


def test_the_variable_is_read_at_the_first_call(monkeypatch):
    monkeypatch.setattr(faults, "_armed", None)
    monkeypatch.setenv(faults.VARIABLE, "ckpt.begin:raise")
    with pytest.raises(InjectedFault):
        fault("ckpt.begin")


def test_step_file_and_hit_conditions(tmp_path):
    arm("ckpt.begin@step=3:raise; ckpt.mid_write@file=state.json@hit=2:raise")
    fault("ckpt.begin", 2)
    with pytest.raises(InjectedFault):
        fault("ckpt.begin", 3)
    fault("ckpt.mid_write", 1, tmp_path / "model.safetensors")
    fault("ckpt.mid_write", 1, tmp_path / "state.json")
    with pytest.raises(InjectedFault):
        fault("ckpt.mid_write", 1, tmp_path / "state.json")
    fault("ckpt.mid_write", 1, tmp_path / "state.json")


def test_errno_names_the_file(tmp_path):
    arm("ckpt.before_open:errno:ENOSPC")
    with pytest.raises(OSError) as caught:
        fault("ckpt.before_open", 1, tmp_path / "a")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a"))


def test_flip_changes_one_bit(tmp_path):
    (tmp_path / "a").write_bytes(bytes(9))
    arm("ckpt.after_rename:flip:a")
    fault("ckpt.after_rename", 1, tmp_path)
    assert sum(byte.bit_count() for byte in (tmp_path / "a").read_bytes()) == 1


def test_trace_appends_and_delay_waits(tmp_path):
    arm(f"*:trace:{tmp_path / 'points'}; ckpt.end:delay:30")
    start = time.monotonic()
    fault("ckpt.begin", 7)
    fault("ckpt.end")
    assert time.monotonic() - start >= 0.03
    assert (tmp_path / "points").read_text() == "ckpt.begin 7 -\nckpt.end - -\n"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("ckpt.after_renam:kill", "ckpt.after_rename"),
        ("ckpt.begin:kil", "kill"),
        ("ckpt.begin", "flip"),
        ("ckpt.begin:errno:ENOSPACE", "ENOSPC"),
        ("ckpt.begin:delay:soon", "milliseconds"),
        ("ckpt.begin@step=x:kill", "step=12"),
        ("ckpt.begin@stp=1:kill", "step"),
        ("ckpt.begin:trace", "file"),
    ],
)
def test_an_unknown_fault_is_a_usage_error_with_a_hint(text, hint):
    with pytest.raises(UsageError) as caught:
        arm(text)
    assert caught.value.exit_code == 2
    assert hint in str(caught.value)


def test_a_figure_becomes_another_number_at_its_step_alone():
    arm("train.loss@step=3:become:nan; train.grad_norm:become:2.5")
    assert faults.altered("train.loss", 1.0, 2) == 1.0
    assert math.isnan(faults.altered("train.loss", 1.0, 3))
    assert faults.altered("train.grad_norm", 1.0, 9) == 2.5
    arm("")
    assert faults.altered("train.loss", 1.0, 3) == 1.0


@pytest.mark.parametrize("text", ["ckpt.begin:become:1", "train.loss:become:much", "train.loss:become"])
def test_only_a_figure_becomes_a_number(text):
    with pytest.raises(UsageError, match=r"train\.loss:become:nan"):
        arm(text)


def test_memory_runs_out_above_a_number_of_tokens():
    arm("train.backward@above=100@hit=2:memory")
    for tokens in (100, 101, 5):
        fault("train.backward", tokens=tokens)
    with pytest.raises(MemoryError):
        fault("train.backward", tokens=200)


def test_a_mistyped_fault_is_told_before_a_command_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNESMITH_FAULT", "ckpt.befor_rename:kill")
    for command in (["train", "sft", "run.name=x"], ["plan", "sft"], ["runs"]):
        done = run_command(*command)
        assert (done.code, "error[E149]" in done.text, "did you mean ckpt.before_rename?" in done.text) == (
            2,
            True,
            True,
        )
    assert list(tmp_path.iterdir()) == []
    assert run_command("explain", "E149").code == 0
