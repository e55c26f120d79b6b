"""Where Tunesmith keeps what it fetched and prepared."""

import os
from pathlib import Path


def home() -> Path:
    """`$TUNESMITH_HOME`, or `~/.cache/tunesmith`."""
    return Path(os.environ.get("TUNESMITH_HOME") or Path.home() / ".cache" / "tunesmith").expanduser()
