"""Z5: importing and training try no connection; a trap in a process of its own sees every attempt."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from tests.distributed.crew import surroundings
from tests.house.source import ROOT, SOURCE

from tunesmith.recipe import to_yaml

OPTIONAL = {"datasets", "lm_eval"}  # of the extras hub and harness, which the tests run without
PROGRAM = """
import json, sys
seen = []
NET = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind", "socket.getaddrinfo", "socket.getnameinfo",
       "socket.gethostbyname", "socket.gethostbyaddr", "urllib.Request", "http.client.connect")
def trap(event, given):
    if event in NET:
        seen.append([event, repr(given[1:])])
        raise ConnectionRefusedError("trapped " + event)
sys.addaudithook(trap)
import socket
try:
    socket.create_connection(("127.0.0.1", 9))
except OSError as error:
    trapped = [str(error)]
try:
    socket.socket().connect(("127.0.0.1", 9))
except OSError as error:
    trapped.append(str(error))
proof, seen[:] = list(seen), []
modules = json.loads(sys.argv[1])
import importlib
missing = []
for name in modules:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing.append(error.name)
if len(sys.argv) > 2:
    from pathlib import Path
    from tunesmith.distributed.mesh import Mesh
    from tunesmith.recipe import load_recipe
    from tunesmith.run import execute
    from tunesmith.track.progress import NoProgress
    from tunesmith.track.run_dir import RunDir
    recipe = load_recipe(sys.argv[2], ["train.steps=3"], {}).recipe
    result = execute(recipe, RunDir.create(Path(sys.argv[3]), "offline"), Mesh(), NoProgress())
    modules = [result.steps]
print(json.dumps([trapped, proof, seen, modules, missing]))
"""


def trapped(*words: str) -> list:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def sprung(found: list) -> bool:
    """Whether the trap closed on the attempts that were made on purpose."""
    return found[0] == ["trapped socket.getaddrinfo", "trapped socket.connect"] and len(found[1]) == 2


@pytest.mark.row("Z5")
def test_z05_training_tries_no_connection(tmp_path, evidence):
    recipe = tmp_path / "recipe.yaml"
    with surroundings(tmp_path) as made:
        recipe.write_text(to_yaml(made))
        found = trapped("[]", str(recipe), str(tmp_path / "runs"))
    assert sprung(found)
    assert found[3] == [3]
    assert found[2] == []
    assert (tmp_path / "runs/offline/adapter/adapter_model.safetensors").exists()
    evidence("Z5", claim="connections tried while importing and training", figure=str(len(found[2])), seed=0)


@pytest.mark.nightly
@pytest.mark.row("Z5")
def test_z05_importing_every_module_tries_no_connection():
    files = sorted(path.relative_to(SOURCE.parent) for path in SOURCE.rglob("*.py"))
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files]
    wanted = [name for name in names if not name.endswith("__main__")]
    found = trapped(json.dumps(wanted))
    assert sprung(found)
    assert len(found[3]) > 400
    assert found[2] == []
    assert set(found[4]) <= OPTIONAL


@pytest.mark.nightly
@pytest.mark.row("Z5")
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_z05_the_kernel_sees_none_either(tmp_path):
    """Libraries in C and Rust pass Python's hooks by; strace sees every process."""
    recipe, log = tmp_path / "recipe.yaml", tmp_path / "calls"
    with surroundings(tmp_path) as made:
        recipe.write_text(to_yaml(made))
    strace = [str(shutil.which("strace")), "-f", "-qq", "-e", "trace=connect,sendto,bind", "-o", str(log)]
    probe = "import socket; s = socket.socket(socket.AF_INET); s.settimeout(0.1); print(s.connect_ex(('127.0.0.1', 9)))"
    subprocess.run([*strace, sys.executable, "-c", probe], check=True, capture_output=True)
    assert "AF_INET" in log.read_text(), "a connection is really seen"
    words = ["train", str(recipe), "train.steps=3", f"run.folder={tmp_path / 'runs'}", "--yes"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TUNESMITH_KERNELS": "off"}
    environment["TUNESMITH_HOME"] = str(tmp_path / "home")
    done = subprocess.run(
        [*strace, sys.executable, "-m", "tunesmith", *words],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line for line in log.read_text().splitlines() if "AF_INET" in line] == []
