"""Tests of the fault table say which rows they are of, and slow tests are shared out between two workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import fault_rows

SLOW = ("tests/e2e/", "tests/distributed/")
KERNELS = Path(__file__).parents[1] / ".pytest_cache" / "kernels"  # compiled once, not in the home of every test
os.environ.setdefault("TUNESMITH_KERNELS_FOLDER", str(KERNELS))
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:  # as shells leave it for jobs in the background, and nohup
        signal.signal(number, handler)


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    """A name that begins with rows is as good as the marker."""
    named = fault_rows.rows_of_name(item.name)
    if named:
        item.add_marker(pytest.mark.row(*named))
    fault_rows.check(marked(item))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each of two workers begins with slow tests, which run whole programs."""
    slow = [item for item in items if item.nodeid.startswith(SLOW)]
    rest = [item for item in items if not item.nodeid.startswith(SLOW)]
    middle = len(items) // 2 - len(slow[::2])
    items[:] = [*slow[::2], *rest[:middle], *slow[1::2], *rest[middle:]]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Write how a test of the table ended, for `make torture`."""
    report: pytest.TestReport = yield  # type: ignore[misc]
    found = marked(item)
    if found and (report.when == "call" or report.outcome != "passed"):
        reason = str(report.longrepr[-1]) if isinstance(report.longrepr, tuple) else ""
        nightly = item.get_closest_marker("nightly") is not None
        fault_rows.Tested(item.nodeid, tuple(found), nightly).ended(report.outcome, reason)
    return report  # type: ignore[return-value]


@pytest.fixture
def evidence(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Publish a figure: `evidence("R6", claim="corrupted checkpoints found", figure="1,000 of 1,000", seed=0)`."""
    nightly = request.node.get_closest_marker("nightly") is not None
    test = fault_rows.Tested(request.node.nodeid, tuple(marked(request.node)), nightly)
    return test.publish


def marked(item: pytest.Item) -> list[str]:
    """The rows of a test, each once, in the order of the table."""
    every = {row for marker in item.iter_markers("row") for row in marker.args}
    return sorted(every, key=fault_rows.order) if every <= fault_rows.ROWS.keys() else list(every)
