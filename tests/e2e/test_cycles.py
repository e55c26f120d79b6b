"""P12: two hundred starts and stops leave no process, port, shared memory or temporary file behind."""

import pytest
from tests.e2e.test_kills import run_harness


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.row("P12", "N9")
def test_p12_two_hundred_starts_and_stops_leave_nothing(tmp_path, evidence):
    report = run_harness("cycle_harness", tmp_path / "cycles", 200, timeout=3580)
    assert report["cycles"] >= 200
    counts = report["counts"]
    assert {stop for name in counts for stop in name.split()[1:]} == {"finish", "SIGTERM", "SIGINT", "SIGKILL"}
    assert counts["ranks SIGKILL"] >= 1
    assert (report["processes"], report["temporary"], report["shared"]) == (0, [], [])
    told = ", ".join(
        f"{sum(n for name, n in counts.items() if name.startswith(k))} {k}" for k in ("train", "serve", "ranks")
    )
    evidence(
        "P12", claim="starts and stops in all ways: processes, ports, shm, temporary files left", figure=f"0 of {told}"
    )
    evidence("N9", claim="runs stopped and resumed in processes of their own, equal to the bit", figure="all", seed=0)
