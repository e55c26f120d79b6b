import copy
import json

import pytest

from common.report import RESULTS, identity, medians_of, ratios
from regress import committed, last_of_the_same, main, regressions


def report(speed: float = 2.0, memory: float = 0.5, date: str = "2026-01-02") -> dict:
    return {
        "benchmark": "sft",
        "date": date,
        "commit": "0123456789ab",
        "work": {"model": "tiny", "tuning": "lora", "work": "short", "dtype": "bfloat16", "threads": 2},
        "ratios": {"peer default": {"tokens_per_second": speed, "peak_bytes": memory}},
    }


@pytest.mark.parametrize(("speed", "memory", "lines"), [(2.0, 0.5, 0), (1.9, 0.52, 0), (1.7, 0.5, 1), (1.7, 0.6, 2)])
def test_what_is_worse_by_more_than_the_margin_is_told(speed, memory, lines):
    assert len(regressions(report(speed, memory), report(), margin=0.1)) == lines


def test_what_is_better_is_no_regression():
    assert regressions(report(speed=9.0, memory=0.1), report(), margin=0.0) == []


def test_rows_and_figures_that_only_one_result_has_are_left_out():
    old = report()
    old["ratios"]["another"] = {"tokens_per_second": 9.0}
    old["ratios"]["peer default"]["share_of_floor"] = 9.0
    assert regressions(report(), old) == []


def test_the_last_result_of_the_same_work_is_found():
    earlier, later, other = report(date="2026-01-01"), report(date="2026-01-02"), report(date="2026-01-03")
    other["work"]["tuning"] = "full"
    new = report(date="2026-01-04")
    assert last_of_the_same(new, [earlier, later, other, new]) is later
    assert last_of_the_same(earlier, [later, other]) is None


def test_a_result_of_the_first_form_is_the_same_work():
    """It said neither what is trained nor how long the sequences are: LoRA on short ones."""
    old = copy.deepcopy(report())
    del old["work"]["tuning"], old["work"]["work"]
    assert identity(old) == identity(report())


def test_the_command_fails_on_a_regression_only(tmp_path, capsys):
    paths = {name: tmp_path / f"{name}.json" for name in ("old", "same", "worse")}
    for name, made in (
        ("old", report()),
        ("same", report(date="2026-02-01")),
        ("worse", report(1.0, 0.5, "2026-02-01")),
    ):
        paths[name].write_text(json.dumps(made))
    assert main([str(paths["same"]), "--old", str(paths["old"])]) == 0
    assert main([str(paths["same"]), str(paths["worse"]), "--old", str(paths["old"])]) == 1
    assert "tokens_per_second was 2.00 of it, now 1.00: 100% worse" in capsys.readouterr().out
    assert main([str(paths["worse"]), "--old", str(paths["old"]), "--margin", "1.5"]) == 0


def test_work_that_was_never_measured_has_nothing_to_be_compared_with(tmp_path, capsys):
    new = report()
    new["work"]["model"] = "never measured"
    (tmp_path / "new.json").write_text(json.dumps(new))
    assert main([str(tmp_path / "new.json")]) == 0
    assert "nothing to compare with" in capsys.readouterr().out


def test_committed_results_can_be_read():
    for one in committed(RESULTS):
        assert regressions(one, one, margin=0.0) == []
        assert one["ratios"], one["date"]


def test_ratios_are_ours_divided_by_theirs():
    runs = [{"speed": 4.0, "memory": 1.0}, {"speed": 6.0, "memory": 3.0}, {"speed": 5.0}]
    assert medians_of(runs, ("speed", "memory")) == {"speed": 5.0}
    found = ratios({"tunesmith": {"speed": 5.0, "memory": 1.0}, "peer": {"speed": 2.0, "other": 3.0}})
    assert found == {"peer": {"speed": 2.5}}
    assert ratios({"peer": {"speed": 2.0}}) == {}
