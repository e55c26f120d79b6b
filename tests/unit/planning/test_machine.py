import os

from tunesmith.planning import machine
from tunesmith.planning.machine import this_machine
from tunesmith.track import limits


def test_this_machine_has_cores_and_memory(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = this_machine()
    assert found.threads == 1
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert 0 < found.memory_free <= found.memory_total


def test_threads_of_the_recipe_come_first(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert this_machine(3).threads == 3


def test_a_container_limit_cuts_what_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "memory.current").write_text("700000000\n")
    (tmp_path / "memory.stat").write_text("anon 500000000\ninactive_file 200000000\n")
    assert machine.memory_limits() == (1_000_000_000, 500_000_000)


def test_an_unlimited_container_changes_nothing(tmp_path, monkeypatch):
    total, _ = machine.memory_limits()
    monkeypatch.setattr(limits, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700000000\n")
    assert machine.memory_limits()[0] == total


def test_the_older_control_groups_are_read_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "CGROUP", tmp_path)
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1000000000\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("400000000\n")
    assert machine.memory_limits() == (1_000_000_000, 600_000_000)
