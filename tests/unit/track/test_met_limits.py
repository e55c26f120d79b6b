"""P7, P10: which errors come of a limit, and what is told of it."""

import errno
import os
import resource
from pathlib import Path

import pytest

from tunesmith.planning import machine
from tunesmith.track import limits
from tunesmith.track.files import disk_error
from tunesmith.track.limits import Bound, group_bounds, limit_error, memory_told, own_bounds
from tunesmith.train.durable import machine_error

pytestmark = pytest.mark.row("P7", "P10")


def bounded(monkeypatch, number: int, limit: int, most: int | None = None) -> None:
    """As if this process had the limit: tests go on in it."""
    real = resource.getrlimit

    def told(asked: int) -> tuple[int, int]:
        return (limit, limit if most is None else most) if asked == number else real(asked)

    monkeypatch.setattr(resource, "getrlimit", told)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "E493"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "E493"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "E493"),
        (RuntimeError("std::bad_alloc"), "E493"),
        (OSError(errno.EMFILE, "Too many open files"), "E533"),
        (OSError(errno.ENFILE, "Too many open files in system"), "E533"),
        (RuntimeError("can't start new thread"), "E534"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "E534"),
    ],
)
def test_an_error_that_comes_of_a_limit_is_told_as_one(error, code):
    told = limit_error(error)
    assert told is not None
    assert (told.diagnostic.code, told.exit_code) == (code, 5)
    assert told.diagnostic.fixes
    assert told.__cause__ is error


def test_a_cause_counts_and_other_errors_do_not():
    try:
        try:
            raise OSError(errno.EMFILE, "Too many open files")
        except OSError as error:
            raise ModuleNotFoundError("No module named 'rich'") from error
    except ModuleNotFoundError as outer:
        told = limit_error(outer)
    assert told is not None
    assert told.diagnostic.code == "E533"
    assert limit_error(ValueError("out of range")) is None
    assert limit_error(RuntimeError("shapes differ")) is None


def test_words_that_were_lost_for_want_of_memory_are_no_bug(monkeypatch):
    assert limit_error(RuntimeError("Unable to insta")) is None
    bounded(monkeypatch, resource.RLIMIT_AS, limits.status_sizes()["VmSize"] + 1000)
    told = limit_error(RuntimeError("Unable to insta"))
    assert told is not None
    assert "Unable to insta" in str(told)
    assert limit_error(KeyError("a bug")) is None


def test_peak_limit_and_three_changes_of_the_recipe(monkeypatch):
    bounded(monkeypatch, resource.RLIMIT_AS, 2_000_000_000)
    told = limits.no_memory(MemoryError(), 1024)
    peak, limit, *_ = told.diagnostic.evidence
    assert "the process has held" in peak
    assert "GB of addresses" in peak
    assert limit.startswith("limit: 2.00 GB (RLIMIT_AS, ulimit -v), ")
    changes = [fix.set for fix in told.diagnostic.fixes if fix.set]
    assert changes[0] == {"train.microbatch_tokens": 512}
    assert len(changes) == 3


def test_without_a_limit_the_machine_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "CGROUP", tmp_path)
    monkeypatch.setattr(limits, "own_bounds", lambda: iter(()))
    assert memory_told()[-1].endswith("GB, the machine's memory")


def test_few_files_are_told_with_their_number_wherever_one_is_written(monkeypatch):
    bounded(monkeypatch, resource.RLIMIT_NOFILE, 16, 4096)
    error = OSError(errno.EMFILE, "Too many open files")
    for told in (limit_error(error), disk_error(error, Path("a.json")), machine_error(error, "step 3", Path("/"), 9)):
        assert told is not None
        assert told.diagnostic.message == "this process may open no further file: its limit is 16"
        assert told.diagnostic.fixes[0].command == "ulimit -n 256"
        assert "administrator" not in str(told)
    bounded(monkeypatch, resource.RLIMIT_NOFILE, 16)
    assert "administrator" in str(limit_error(error))


@pytest.mark.parametrize("number", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_a_plan_has_what_a_limit_leaves_for_what_is_touched(monkeypatch, number):
    total, free = machine.memory_limits()
    bounded(monkeypatch, number, 1 << 60)
    (bound,) = own_bounds()
    limit = bound.used + 1_000_000_000
    bounded(monkeypatch, number, limit)
    assert 0 < bound.idle < bound.used
    found = machine.memory_limits()
    assert found[0] == min(total, limit)
    assert found[1] == pytest.approx(min(free, limit - bound.idle), rel=0.2)
    assert Bound("x", 10, 20, 30).room == 0


def test_a_control_group_is_told_with_its_use(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "memory.current").write_text("700000000\n")
    (tmp_path / "memory.stat").write_text("inactive_file 200000000\n")
    assert str(next(group_bounds())) == "limit: 1.00 GB (control group, memory.max), 0.50 GB in use"
    if os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") > 1_000_000_000:
        assert any("control group" in line for line in memory_told())
