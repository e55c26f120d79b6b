"""Z7: twelve secrets stand in the environment and are said by everything that speaks; none is ever written."""

import os
import sys
import time

import pytest
from tests.distributed.crew import Forked, surroundings

from tunesmith import redaction
from tunesmith import run as running
from tunesmith.cli.output import crash, fail
from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import UsageError
from tunesmith.run import execute
from tunesmith.track.progress import LineProgress
from tunesmith.track.run_dir import RunDir

NAMES = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY"),
    *("AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "GITHUB_TOKEN", "DB_PASS", "SIGNING_SECRET"),
    *("TUNESMITH_SERVE_TOKEN", "CLOUD_CREDENTIALS"),
)
CANARIES = {name: f"canary{number:02d}/Zq+{name.lower()[::-1]}" for number, name in enumerate(NAMES)}
SHAPED = "hf_canaryCANARYcanary0123"  # a token that no variable holds
SAYS = " ".join([*CANARIES.values(), SHAPED])


def speak(recipe, run, covered: bool) -> None:
    """Train a little with secrets in the command, in the recipe, in a warning and in an error; then fail loudly."""
    os.environ.update(CANARIES)
    redaction.known_values.cache_clear()
    if not covered:
        for module in list(sys.modules.values()):
            for name in ("redacted", "redacted_tree"):
                if module.__dict__.get(name) is redaction.__dict__[name] and module is not redaction:
                    module.__dict__[name] = lambda value: value
    sys.argv = ["tunesmith", "train", f"note={SAYS}"]
    train = recipe.train.model_copy(update={"sample_prompts": (SAYS,), "sample_every": 4, "steps": 4})
    telling = recipe.model_copy(update={"train": train})
    running.input_warnings = lambda _: [f"warning: {SAYS}"]

    def broken(*_: object) -> None:
        raise RuntimeError(f"cannot log in with {SAYS}")

    running.summarise = broken
    from rich.console import Console

    try:
        with LineProgress(Console(stderr=True)) as display:
            execute(telling, RunDir(run), Mesh(), display)
    except RuntimeError as error:
        crash(error)
        crash(error, as_json=True)
        fail(UsageError("E020", SAYS, evidence=[SAYS], fixes=[SAYS]))
        fail(UsageError("E020", SAYS, evidence=[SAYS], fixes=[SAYS]), as_json=True)
        os._exit(17)


def said(recipe, run, *, covered: bool) -> dict[str, set[str]]:
    """Which secrets stand in which file, of all that a run writes or prints."""
    run.mkdir()
    home = run.with_name(f"home-{run.name}")

    def work() -> None:
        os.environ["TUNESMITH_HOME"] = str(home)
        speak(recipe, run, covered)

    process = Forked(work, run / "printed.txt")
    while process.poll() is None:
        time.sleep(0.01)
    assert process.poll() == 17, (run / "printed.txt").read_text()
    files = [path for place in (run, home) for path in place.rglob("*") if path.is_file()]
    found: dict[str, set[str]] = {}
    for path in files:
        content = path.read_bytes()
        for canary in (*CANARIES.values(), SHAPED):
            if canary[:8].encode() in content:  # the beginning alone: a text that is cut short must not show it either
                found.setdefault(path.name.rpartition("-")[2], set()).add(canary)
    assert len(files) > 12
    return found


@pytest.mark.row("Z7", "S25")
def test_z07_no_secret_is_written_or_printed(tmp_path, evidence):
    with surroundings(tmp_path) as recipe:
        bare = said(recipe, tmp_path / "bare", covered=False)
        found = said(recipe, tmp_path / "covered", covered=True)
    places = {"run.json", "config.yaml", "log.txt", "events.jsonl", "completions.jsonl", "printed.txt"}
    assert places <= bare.keys(), "secrets were really said, and this test finds them"
    assert all(len(bare[place]) == len(CANARIES) + 1 for place in places)
    assert found == {}
    claim = f"secrets found in {len(bare)} kinds of files that {len(CANARIES)} were said into"
    evidence("Z7", claim=claim, figure="0", seed=0)
