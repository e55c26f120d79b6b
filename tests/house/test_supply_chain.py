"""Z2 to Z4, Z8, S20, S23: what the wheel holds, what it needs, and what scanners say of its sources."""

import ast
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from tests.house.source import ROOT
from tests.house.test_banned_calls import hits

BUILD = "import sys, setuptools.build_meta as made; print(made.build_wheel(sys.argv[1]))"
BESIDE = ("pyproject.toml", "README.md", "LICENSE")
KINDS = {".py", ".md", ".yaml", ".json", ".cpp", ".h", ".typed", ""}
FLOORS = {
    "torch": "2.10", "transformers": "5.3", "jinja2": "3.1.6", "starlette": "0.49.1", "pyyaml": "5.4",
}  # fmt: skip
TAKEN_OVER = {"lightning": ("2.6.2", "2.6.3"), "litellm": ("1.82.7", "1.82.8"), "ultralytics": ("8.3.41", "8.3.42")}
NEVER = {"deepspeed", "joblib", "dill", "cloudpickle", "lightning", "litellm", "ultralytics", "picklescan"}
# Each is a place that bandit is unsure of, and why it is right.
EXPLAINED = {
    ("export/exporting.py", "B615"): "reads config.json of a local folder",
    ("export/quantised.py", "B615"): "reads back folders that the export has just written",
    ("models/gguf.py", "B615"): "reads a GGUF file in a local folder of its own",
    ("models/quantized/loading.py", "B615"): "reads generation_config.json of a local folder",
    ("serve/vllm.py", "B113"): "answers of a local vLLM take as long as they take; our own limits end them",
}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements() -> dict[str, list[Requirement]]:
    """What is needed directly: of the package itself under "", and of every extra."""
    told = project()
    lists = {"": told["dependencies"], **told["optional-dependencies"]}
    return {extra: [Requirement(line) for line in lines] for extra, lines in lists.items()}


def pinned() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pairs = [line.split("==") for line in lines]
    return {re.sub(r"[-_.]+", "-", name).lower(): Version(version) for name, version in pairs}


def build(folder: Path, moment: int) -> Path:
    """A wheel from a copy of the sources that has times and a place of its own, and the rights of `git archive`."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in BESIDE:
        shutil.copyfile(ROOT / name, folder / name)
    for path in folder.rglob("*"):
        os.utime(path, (moment, moment))
        path.chmod(0o775 if path.is_dir() else 0o664)
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000", "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder / "out")],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return next((folder / "out").glob("*.whl"))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "another-place")]
    return [build(folders[0], 1_600_000_000), build(folders[1], 1_650_000_000)]


@pytest.mark.row("Z4", "S23")
def test_z04_two_builds_are_equal_to_the_byte(wheels, evidence):
    one, other = (hashlib.sha256(path.read_bytes()).hexdigest() for path in wheels)
    assert wheels[0].name == wheels[1].name
    assert one == other
    evidence("Z4", claim="wheels of two builds that differ", figure="0 of 2", seed=0)


@pytest.mark.row("Z4", "S23")
def test_z04_the_wheel_holds_the_package_alone(wheels):
    with zipfile.ZipFile(wheels[0]) as wheel:
        names = wheel.namelist()
        about = f"tunesmith-{project()['version']}.dist-info/"
        assert {name.partition("/")[0] + "/" for name in names} == {"tunesmith/", about}
        assert {Path(name).suffix for name in names if name.startswith("tunesmith/")} <= KINDS
        assert not [name for name in names if re.search(r"(^|/)(tests?|\.env|\.git|secrets?)(/|$)|\.pth$", name)]
        assert [name for name in names if name.endswith("redaction.py")], "the list of the wheel is really read"
        entry = wheel.read(f"{about}entry_points.txt").decode().split()
        assert entry == ["[console_scripts]", "tunesmith", "=", "tunesmith.__main__:main"]
        sources = {name: ast.parse(wheel.read(name)) for name in names if name.endswith(".py")}
        texts = {name: wheel.read(name).decode() for name in names if not name.endswith("RECORD")}
    assert len(sources) > 400
    assert hits({f"src/{name}": module for name, module in sources.items()}) == {}
    secret = re.compile(r"hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY")
    assert [name for name, text in texts.items() if secret.search(text)] == []


@pytest.mark.row("S23")
def test_s23_direct_dependencies_are_the_reviewed_ones():
    names = [each.name for each in requirements()[""]]
    decision = (ROOT / "docs/decisions/0009-eleven-dependencies.md").read_text()
    assert len(names) <= 11
    assert [name for name in names if f"`{name}`" not in decision] == []
    assert NEVER.isdisjoint(name.lower() for each in requirements().values() for name in [one.name for one in each])


@pytest.mark.row("Z3", "S20", "S23")
def test_z03_s20_floors_hold_offline():
    pins = pinned()
    for name, floor in FLOORS.items():
        asked = [one for each in requirements().values() for one in each if one.name.lower() == name]
        lowest = [Version(part.version) for one in asked for part in one.specifier if part.operator == ">="]
        assert lowest, name
        assert min(lowest) >= Version(floor)
        assert pins[name] >= Version(floor), name
        if find_spec(asked[0].name) or name in ("pyyaml", "jinja2"):
            assert Version(importlib.metadata.version(name)) >= Version(floor)
    assert [name for name in NEVER - {"joblib", "cloudpickle"} if name in pins] == []
    assert [(name, bad) for name, every in TAKEN_OVER.items() for bad in every if pins.get(name) == Version(bad)] == []


@pytest.mark.row("Z8", "S23")
def test_z08_every_direct_dependency_is_pinned_once():
    pins = pinned()
    unpinned = {"hub", "harness"}  # no test of every commit installs them
    tested = {extra: each for extra, each in requirements().items() if extra not in unpinned}
    needed = {one.name for each in tested.values() for one in each} - {"tunesmith"}
    assert sorted(name for name in needed if re.sub(r"[-_.]+", "-", name).lower() not in pins) == []


@pytest.mark.row("Z8")
def test_z08_the_policy_says_how_to_report_and_what_is_promised():
    text = (ROOT / "SECURITY.md").read_text()
    titles = re.findall(r"^## (.*)$", text, re.M)
    assert titles == ["Reporting", "What is guaranteed", "What is not", "What the package is made of"]
    assert [name for name in re.findall(r"`(tests/[\w/.]+)`", text) if not (ROOT / name).exists()] == []
    assert "constraints.txt" in text


@pytest.mark.row("Z2")
@pytest.mark.skipif(find_spec("bandit") is None, reason="bandit is not installed")
def test_z02_bandit_finds_nothing_that_is_not_explained(tmp_path, evidence):
    probe = tmp_path / "probe.py"
    probe.write_text("import subprocess\nsubprocess.run(input(), shell=True)\n")
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "bandit", "-q", "-r", "-ll", "-f", "json", "-o", str(report)]
    subprocess.run([*command, str(ROOT / "src/tunesmith"), str(probe)], check=False, capture_output=True)
    content = json.loads(report.read_text())
    found = [(each["filename"], each["test_id"], each["issue_severity"]) for each in content["results"]]
    assert (str(probe), "B602", "HIGH") in found, "the scanner really looks"
    found = [each for each in found if each[0] != str(probe)]
    assert [each for each in found if each[2] == "HIGH"] == []
    base = str(ROOT / "src/tunesmith") + os.sep
    unexplained = [each for each in found if (each[0].removeprefix(base), each[1]) not in EXPLAINED]
    assert unexplained == []
    assert content["metrics"]["_totals"]["nosec"] == 0
    claim = f"bandit: HIGH and unexplained MEDIUM in {content['metrics']['_totals']['loc']:,} lines"
    evidence("Z2", claim=claim, figure="0 and 0", seed=0)
