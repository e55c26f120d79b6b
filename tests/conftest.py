"""The slow tests, which run whole programs, are shared out between two workers, each of which begins with its own."""

import pytest

SLOW = ("tests/e2e/", "tests/distributed/")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = [item for item in items if item.nodeid.startswith(SLOW)]
    rest = [item for item in items if not item.nodeid.startswith(SLOW)]
    middle = len(items) // 2 - len(slow[::2])
    items[:] = [*slow[::2], *rest[:middle], *slow[1::2], *rest[middle:]]
