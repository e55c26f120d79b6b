"""The page of benchmark results is fresh: run `python benchmarks/page.py` when this fails."""

from common.tables import notes, runs_of, table, title
from page import PAGE, page


def report() -> dict:
    ours = {"tokens_per_second": 1234.5, "peak_bytes": 2**30}
    theirs = {"tokens_per_second": 500.0}
    sides = {
        "tunesmith": {"versions": {"torch": "2.13.0"}, "median": ours, "runs": [{"losses": [2.0, 1.5]}]},
        "peer best": {"versions": {"trl": "1.0"}, "median": theirs, "runs": [{"losses": [2.0, 1.52]}]},
    }
    work = {"model": "tiny", "tuning": "full", "work": "long", "dtype": "float32", "threads": 1, "repeats": 1}
    return {
        "benchmark": "sft",
        "date": "2026-01-02T03:04:05+00:00",
        "commit": "0123456789ab",
        "machine": {"cores": 2, "cpu": "a processor"},
        "work": {**work, "sequences": 4},
        "load_allowed": True,
        "busy_cores_before": [0.0, 1.0],
        "losses_float32": {"tunesmith": [2.0, 1.5], "peer best": [2.0, 1.5001]},
        "sides": sides,
        "ratios": {"peer best": {"tokens_per_second": 2.469}},
        "loss": {"first": {"tunesmith": 2.0, "peer best": 2.00004}, "largest_difference": 1e-4},
    }


def test_page_of_results_is_fresh():
    assert PAGE.read_text(encoding="utf-8") == page()


def test_a_table_shows_what_was_measured():
    assert table(report()).splitlines() == [
        "| row | tokens/s | GiB | first loss | loss apart | speed | memory |",
        "|---|---|---|---|---|---|---|",
        "| tunesmith | 1,234 | 1.00 | 2.0000 |  |  |  |",
        "| peer best | 500 |  | 2.0000 | 2e-02 | 2.47 |  |",
    ]


def test_the_notes_tell_the_conditions():
    text = notes(report())
    for told in ("2 cores (a processor)", "1 threads, float32, 4 sequences a step, one run", "in fp32 at most 1.0e-04"):
        assert told in text
    assert "Other processes were at work." in text
    assert text.endswith("trl 1.0.")
    assert title(report()) == "SFT of all weights, tiny, long sequences"
    assert runs_of(3) == "medians of 3 runs"
