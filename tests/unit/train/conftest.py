"""No failpoint outlives its test."""

from collections.abc import Iterator

import pytest

from tunesmith import faults


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    faults.arm("")
