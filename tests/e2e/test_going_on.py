"""R6, R14: what a run that goes on tells, and what an update of Tunesmith changes in its settings."""


import pytest

from tunesmith import faults
from tunesmith.errors import CheckpointError
from tunesmith.track.index import summarise
from tunesmith.track.run_dir import RunDir

pytestmark = pytest.mark.timeout(600)


def test_r06_a_damaged_checkpoint_is_told_on_the_screen_and_in_the_log(train, tmp_path, capsys):
    with pytest.raises(faults.InjectedFault):
        train("run", "train.step@step=5:raise")
    run = tmp_path / "run"
    file = run / "checkpoints" / "step-4" / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    capsys.readouterr()
    train("run")
    shown = capsys.readouterr().err
    for told in (shown, (run / "log.txt").read_text()):
        assert "W110" in told
        assert "checkpoint step-4 is skipped" in told
        assert "optimizer.safetensors" in told
        assert "going on from step 2" in told


def test_r07_a_resume_that_fails_shows_the_last_step(train, tmp_path):
    with pytest.raises(faults.InjectedFault):
        train("run", "train.step@step=5:raise")
    run = tmp_path / "run"
    assert summarise(RunDir(run)).step == 4
    for folder in (run / "checkpoints").glob("step-*"):
        (folder / "state.json").unlink()
    with pytest.raises(CheckpointError, match="E110"):
        train("run")
    found = summarise(RunDir(run))
    assert (found.state, found.step, found.attempt) == ("failed", 4, 2)
