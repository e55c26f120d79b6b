"""One measured run of `tunesmith train`; started by sft.py in Tunesmith's environment with a JSON file of settings."""

import json
import sys
from pathlib import Path

from tunesmith_run import adapter_settings, prepared_rows, run, write_rows


def write_tokens(settings: dict) -> dict:
    return write_rows(settings, prepared_rows(settings, "sequence"))


def train(settings: dict) -> dict:
    """`overrides` are settings of the row beyond its defaults."""
    steps = [f"train.steps={settings['steps']}", f"train.sequences_per_step={settings['sequences']}"]
    if settings["tuning"] == "full":
        return run(settings, "full", [*steps, *settings["overrides"]])
    return run(settings, "sft", [*steps, *adapter_settings(settings), *settings["overrides"]])


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    done = write_tokens(given) if given["task"] == "tokens" else train(given)
    Path(given["out"]).write_text(json.dumps(done))
