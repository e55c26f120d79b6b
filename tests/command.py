"""The command line as a function, for tests in this process."""

import pytest

from tunesmith.cli.main import run


def call(*words: str) -> int:
    """`tunesmith WORDS`: its exit code."""
    with pytest.raises(SystemExit) as caught:
        run(list(words))
    return int(caught.value.code or 0)
