"""One measured run of `tunesmith train`; started by preference.py in Tunesmith's environment with JSON settings."""

import json
import os
import sys
from pathlib import Path

from tunesmith_run import adapter_settings, prepared_rows, run, write_rows


def write_tokens(settings: dict) -> dict:
    return write_rows(settings, prepared_rows(settings, "feedback" if settings["method"] == "kto" else "pair"))


def train(settings: dict) -> dict:
    reference = [] if settings["method"] == "orpo" else ["model.reference.source=adapter_off"]
    words = [
        *reference,
        *adapter_settings(settings),
        f"objective.beta={settings['beta']}",
        f"train.epochs={settings['epochs']}",
        f"train.sequences_per_step={settings['records']}",
    ]
    return run(settings, settings["method"], words)


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    # A home of its own: what an earlier run kept, the reference's log-probabilities above all, must not be found.
    os.environ["TUNESMITH_HOME"] = f"{given['folder']}/home"
    done = write_tokens(given) if given["task"] == "tokens" else train(given)
    Path(given["out"]).write_text(json.dumps(done))
