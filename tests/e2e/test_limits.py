"""P7, P10: memory, files, threads and shared memory that are really not there, in whole runs."""

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.attempts import make_inputs, tiny_recipe
from tests.e2e.test_kills import ROOT, run_harness

from tunesmith.recipe import to_yaml
from tunesmith.track.index import summarise
from tunesmith.track.run_dir import RunDir


@pytest.mark.row("P7", "P8", "P10")
def test_p07_p10_limits_that_are_met_in_the_middle(tmp_path, evidence):
    cases = run_harness("limit_harness", tmp_path)["cases"]
    assert not any(case["damaged"] or case["cores"] or "Traceback" in case["told"] for case in cases.values())
    check_halved(cases["free"], cases["halved"], evidence)
    check_no_memory(cases["no memory"], evidence)
    check_files_and_threads(cases["no files"], cases["no threads"], evidence)


def check_halved(free: dict, short: dict, evidence) -> None:
    """A microbatch beyond the address space is halved and gives the same loss."""
    assert (free["code"], short["code"], len(free["losses"])) == (0, 0, 8), short["told"]
    assert free["events"] == []
    assert short["events"][0]["step"] == 5, "the limit was never met"
    apart = max(abs(a - b) / b for a, b in zip(short["losses"], free["losses"], strict=True))
    assert apart <= 1e-6
    assert short["newest"] == 8
    told = f"{short['events'][-1]['microbatch_tokens']:,} tokens, {apart:.1e} apart"
    evidence("P7", claim="RLIMIT_AS met in step 5 of 8: microbatches halved to, loss", figure=told)


def check_no_memory(short: dict, evidence) -> None:
    """Where halving does not help, peak, limit and three changes of the recipe are told."""
    told = short["told"]
    assert short["code"] == 5, told
    assert told.startswith(("error[E491]", "error[E493]"))
    assert re.search(r"the process has held \d\.\d\d GB at most, \d\.\d\d GB of addresses", told), told
    assert "(RLIMIT_AS, ulimit -v)" in told
    fixes = [line for line in told.splitlines() if line.startswith(("  fix:", "  or :"))]
    assert sum("=" in fix for fix in fixes) == 3, fixes
    assert short["newest"] == 4
    evidence("P7", claim="nothing left below RLIMIT_AS in step 5: exit code, newest checkpoint", figure="5, step 4")


def check_files_and_threads(files: dict, threads: dict, evidence) -> None:
    assert (files["code"], threads["code"]) == (5, 5), (files["told"], threads["told"])
    assert files["told"].startswith("error[E533]: this process may open no further file: its limit is ")
    assert "ulimit -n 256" in files["told"]
    assert files["newest"] >= 4
    assert threads["told"].startswith("error[E534]: the system gave this process no further thread")
    assert "train.threads=1" in threads["told"]
    assert "(RLIMIT_AS, ulimit -v)" in threads["told"]
    evidence(
        "P10", claim="no file, no thread: exit codes", figure=f"5, 5; newest checkpoint step {files['newest']} valid"
    )


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("limited")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_HOME", str(folder / "home"))
        make_inputs(folder)
        path = folder / "recipe.yaml"
        plain = {"train.evaluate_every": 0, "data.eval": [], "run.folder": folder / "runs"}
        path.write_text(to_yaml(tiny_recipe(folder, changes=plain)))
    return path


def command(recipe: Path, name: str, *words: str, before=None, around: tuple[str, ...] = ()) -> tuple[int, str]:
    """`tunesmith train` in a process of its own: exit code and what was told."""
    own = {"OMP_NUM_THREADS": "1", "TUNESMITH_HOME": str(recipe.parent / "home"), "COLUMNS": "200"}
    argv = [*around, sys.executable, "-m", "tunesmith", "train", str(recipe), f"run.name={name}", "--yes", *words]
    done = subprocess.run(
        argv, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, timeout=120, preexec_fn=before
    )
    assert not list(ROOT.glob("core*")), "a core was dumped"
    return done.returncode, done.stderr


def limited(number: int, value: int):
    """Set in the child, with cores allowed, so that one would be seen."""

    def cut() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
        resource.setrlimit(number, (value, value))

    return cut


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.row("P7")
def test_p07_limits_from_the_start_are_planned_for_or_told(recipe, evidence):
    found = {}
    for name, number in (("RLIMIT_AS", resource.RLIMIT_AS), ("RLIMIT_DATA", resource.RLIMIT_DATA)):
        for size in (150, 350, 600, 700, 800):
            code, told = command(recipe, f"{name}-{size}", before=limited(number, size * 1_000_000))
            found[f"{name} {size} MB"] = code
            assert code in (0, 3, 5), f"{name} {size} MB: {code} {told[-2000:]}"
            assert "Traceback" not in told, told
            if code == 5:
                assert f"({name}, ulimit" in told, told
                assert "GB at most" in told
            if code == 3:
                assert "GB are free" in told
    assert 5 in found.values(), found
    evidence("P7", claim="limits from the start: exit codes", figure=", ".join(f"{k}: {v}" for k, v in found.items()))


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.row("P10")
def test_p10_few_files_from_the_start_are_enough_or_told(recipe, evidence):
    found = {}
    for count in (8, 12, 16, 20, 24, 28, 32, 64):
        code, told = command(recipe, f"files-{count}", before=limited(resource.RLIMIT_NOFILE, count))
        found[count] = code
        assert code in (0, 5), f"{count}: {code} {told[-2000:]}"
        assert "Traceback" not in told, told
        assert code == 0 or f"error[E533]: this process may open no further file: its limit is {count}" in told
    assert (found[16], found[64]) == (5, 0)
    evidence("P10", claim="RLIMIT_NOFILE from the start: exit codes", figure=str(found))


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.row("P10")
def test_p10_two_ranks_need_no_shared_memory(recipe, evidence):
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("needs unshare with namespaces of users and mounts")
    script = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && df --output=size /dev/shm | tail -1 >&2 && exec "$@"'
    around = (unshare, "-Urm", "sh", "-c", script, "sh")
    code, told = command(recipe, "shm", "--ranks", "2", around=around)
    assert code == 0, told
    assert told.splitlines()[0].strip() == "64", "the small /dev/shm was not there"
    assert summarise(RunDir(recipe.parent / "runs" / "shm")).step == 12
    evidence("P10", claim="two ranks with 64 kB of /dev/shm", figure="12 of 12 steps")
