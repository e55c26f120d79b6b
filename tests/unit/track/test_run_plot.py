"""The plot of a run."""

import struct
import sys

import pytest

from tunesmith.errors import UsageError
from tunesmith.track import RunDir, Tracker
from tunesmith.track.plot import plot_run, smoothed

MORE = {"train/lr": 1e-4, "train/grad_norm": 1.0, "perf/tok_s": 300.0, "eval/loss": 1.0}


def make_run(tmp_path, steps: int, *, only_loss: bool = False) -> RunDir:
    run = RunDir.create(tmp_path, "a")
    with Tracker(run, tensorboard=False) as tracker:
        for step in range(1, steps + 1):
            loss = float("nan") if step == 3 else 2.0 / step
            more = (
                {} if only_loss else {"train/lr": 1e-4, "train/grad_norm": 1.0, "perf/tok_s": 300.0, "eval/loss": 1.0}
            )
            tracker.metrics(step, step, {"train/loss": loss, **more})
    return run


@pytest.mark.parametrize("steps", [1, 2, 40])
@pytest.mark.parametrize("only_loss", [False, True])
def test_the_curves_become_a_png_without_global_state(tmp_path, steps, only_loss):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = plot_run(make_run(tmp_path, steps, only_loss=only_loss))
    content = path.read_bytes()
    assert path.name == "plot.png"
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (1320, 768)
    assert "matplotlib.pyplot" not in sys.modules


def test_a_run_without_steps_has_nothing_to_plot(tmp_path):
    with pytest.raises(UsageError) as caught:
        plot_run(make_run(tmp_path, 0))
    assert caught.value.diagnostic.code == "E196"


def test_smoothing_starts_at_the_first_value_and_skips_gaps():
    assert smoothed([4.0, 4.0]) == pytest.approx([4.0, 4.0])
    assert smoothed([1.0, float("nan"), float("inf"), 1.0]) == pytest.approx([1.0] * 4)
    # after 2 values: (0.9 * 0.1 * 1 + 0.1 * 3) / (1 - 0.81)
    assert smoothed([1.0, 3.0])[1] == pytest.approx(0.39 / 0.19)
