import json
import os
import time

import pytest

from tunesmith import doctor
from tunesmith.cli.main import run
from tunesmith.models.cache import staged
from tunesmith.models.native import build as native


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))


def finding(name, runs):
    return next(finding for finding in doctor.examine(runs) if finding.name == name)


def test_this_environment_is_ready(tmp_path):
    findings = list(doctor.examine(tmp_path))
    assert not [finding for finding in findings if finding.state == "error"]
    names = [finding.name for finding in findings]
    assert {"python", "torch", "jinja2", "home", "runs", "memory", "starter", "pyarrow"} <= set(names)
    assert all(finding.problem.fixes for finding in findings if finding.problem is not None)


def test_floors_are_never_below_what_is_safe():
    floors = doctor.floors()
    for name, safe in doctor.SAFE.items():
        assert doctor.numbers(floors[name]) >= doctor.numbers(safe)


def test_versions_compare_as_numbers():
    assert doctor.numbers("2.13.0+cpu") == (2, 13, 0)
    assert doctor.numbers("3.1.6") < doctor.numbers("3.1.10") < doctor.numbers("3.2rc1")


def test_kernels_that_cannot_be_had_are_information(tmp_path, monkeypatch):
    assert finding("kernels", tmp_path).problem is None or not native.compiler()
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(native, "compiler", lambda: None)
    found = finding("kernels", tmp_path)
    assert found.state == "info"
    assert found.problem.code == "W178"
    assert "there is no C++ compiler" in found.text


def test_a_starter_not_fetched_is_information(tmp_path):
    found = finding("starter", tmp_path)
    assert found.state == "info"
    assert found.problem.code == "W174"


def test_f03_a_damaged_starter_is_an_error_with_the_file_named(tmp_path):
    folder = doctor.starter_folder()
    folder.parent.mkdir(parents=True)
    with staged(folder) as stage:
        (stage / "config.json").write_text("{}")
    assert finding("starter", tmp_path).state == "ok"
    status = (folder / "config.json").stat()
    (folder / "config.json").write_text("[]")
    os.utime(folder / "config.json", ns=(status.st_mtime_ns, status.st_mtime_ns))
    found = finding("starter", tmp_path)
    assert found.state == "error"
    assert "config.json" in found.problem.message


def test_a_folder_that_cannot_be_written_is_an_error():
    found = doctor._folder("home", doctor.Path("/proc/nothing/here"), "TUNESMITH_HOME")
    assert found.state == "error"
    assert found.problem.code == "E173"


def test_the_command_prints_one_object(capsys):
    with pytest.raises(SystemExit) as caught:
        run(["doctor", "--json"])
    content = json.loads(capsys.readouterr().out)
    assert not caught.value.code
    assert content["ok"] is True
    assert {"name", "state", "text", "problem"} == set(content["findings"][0])


def test_the_command_says_what_to_do_next(capsys):
    with pytest.raises(SystemExit):
        run(["doctor"])
    assert "tunesmith quickstart" in capsys.readouterr().out


def test_caches_are_measured_and_old_ones_removed(tmp_path, capsys):
    home = tmp_path / "home"
    for kind, name, age in (
        ("prepared", "old", 40),
        ("reference", "old", 40),
        ("reference", "new", 1),
        ("trunk", "old", 40),
        ("models", "m", 99),
    ):
        folder = home / kind / name
        (folder / "mismatched").mkdir(parents=True)
        (folder / "mismatched" / "values.bin").write_bytes(b"x" * 5_000_000)
        then = time.time() - age * 86_400
        os.utime(folder / "mismatched" / "values.bin", (then, then))
    text = finding("caches", tmp_path).text
    assert "prepared 0.01 GB in 1, reference 0.01 GB in 2, trunk 0.01 GB in 1, models 0.01 GB in 1" in text
    with pytest.raises(SystemExit):
        run(["doctor", "--prune-older-than", "30", "--json"])
    removed = json.loads(capsys.readouterr().out)["removed"]
    assert {name: each["entries"] for name, each in removed.items()} == {"prepared": 1, "reference": 1, "trunk": 1}
    assert removed["reference"]["bytes"] >= 5_000_000
    left = sorted(str(path.relative_to(home)) for path in home.glob("*/*"))
    assert left == ["models/m", "reference/new"]
