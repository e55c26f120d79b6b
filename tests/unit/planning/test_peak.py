"""The peak of the machine is measured once, and kept."""

import json

import pytest
import torch

from tunesmith.planning import peak
from tunesmith.planning.machine import Machine

MACHINE = Machine("cpu", "a processor", 4, 1, 8 * 10**9, 6 * 10**9)


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))


@pytest.fixture
def measured(monkeypatch) -> list[tuple[str, str]]:
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(peak, "measure_peak", lambda device, dtype: calls.append((device, dtype)) or 1e9 * len(calls))
    return calls


def test_it_is_measured_once_for_each_type_and_number_of_threads(measured):
    assert peak.measured_peak(MACHINE, "float32") == peak.measured_peak(MACHINE, "float32") == 1e9
    assert peak.measured_peak(MACHINE, "bfloat16") == 2e9
    assert peak.measured_peak(Machine("cpu", "a processor", 4, 2, 1, 1), "float32") == 3e9
    assert peak.measured_peak(MACHINE, "float32") == 1e9
    keys = json.loads(peak.peaks_file().read_text())["peaks"]
    assert len(keys) == len(measured) == 3
    assert all(torch.__version__ in key for key in keys)


@pytest.mark.parametrize("text", ["", "[]", '{"peaks": 3}', '{"peaks": {"x": "y"}}'])
def test_a_broken_file_counts_as_none_and_is_mended(measured, text):
    peak.make_folder(peak.home())
    peak.peaks_file().write_text(text)
    assert peak.measured_peak(MACHINE, "float32") == 1e9
    assert len(json.loads(peak.peaks_file().read_text())["peaks"]) == 1


def test_a_home_that_cannot_be_written_stops_nothing(measured, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "file" / "home"))
    assert peak.measured_peak(MACHINE, "float32") == 1e9


def test_measuring_leaves_the_chance_of_the_run_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert peak.measure_peak("cpu", "float32") > 1e8
    assert torch.equal(before, torch.get_rng_state())
