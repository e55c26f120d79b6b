import json

import pytest
from tests.tiny import tiny_model_folder

from tunesmith.models.config import FreezeConfig, FullConfig, LoraConfig
from tunesmith.models.inventory import take_inventory, trainable
from tunesmith.planning import calibration
from tunesmith.planning.machine import Machine

MACHINE = Machine("cpu", "a processor", 4, 2, 8 * 10**9, 6 * 10**9)


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))


def test_before_the_first_run_the_speed_is_a_guess():
    speed = calibration.known_speed(MACHINE, "bfloat16")
    assert speed.is_guess
    assert speed.flops == 2 * calibration.GUESS_PER_CORE


def test_a_run_teaches_its_device_type_and_threads_only():
    calibration.record_speed(calibration.calibration_key(MACHINE, "bfloat16"), 1e12, 10)
    learned = calibration.known_speed(MACHINE, "bfloat16")
    assert (learned.flops, learned.runs) == (1e11, 1)
    assert calibration.known_speed(MACHINE, "float32").is_guess
    other = Machine("cpu", "a processor", 4, 1, 8 * 10**9, 6 * 10**9)
    assert calibration.known_speed(other, "bfloat16").is_guess


def test_later_runs_move_the_speed_and_short_ones_do_not():
    calibration.record_speed("key", 1e12, 10)
    calibration.record_speed("key", 3e12, 10)
    calibration.record_speed("key", 9e12, 0.1)
    speeds = json.loads(calibration.calibration_file().read_text())["speeds"]
    assert speeds == {"key": {"flops": 2e11, "runs": 2}}


@pytest.mark.parametrize("text", ["", "[]", '{"speeds": {"key": 3}}', '{"speeds": {"key": {"flops": "x", "runs": 1}}}'])
def test_a_broken_file_counts_as_none_and_is_mended(text):
    calibration.make_folder(calibration.home())
    calibration.calibration_file().write_text(text)
    assert calibration.known_speed(MACHINE, "bfloat16").is_guess
    calibration.record_speed("key", 1e12, 10)
    assert "key" in json.loads(calibration.calibration_file().read_text())["speeds"]


def test_flops_follow_the_published_formulas(tmp_path):
    """LoRA 4 N_b + 4 s N_h + 6 n_l + 7 T q L, full 6 N_b + 6 s N_h + 7 T q L; frozen lower layers take no backward."""
    model = take_inventory(tiny_model_folder(tmp_path))
    body, head = model.body, model.head
    attention = 7 * 100 * model.query * model.layers
    lora = trainable(model, LoraConfig(rank=4))
    assert calibration.flops_per_token(model, lora, 0.5, 100) == 4 * body + 2 * head + 6 * lora.total + attention
    full = calibration.flops_per_token(model, trainable(model, FullConfig()), 1.0, 100)
    assert full == 6 * body + 6 * head + attention
    half = calibration.flops_per_token(model, trainable(model, FreezeConfig(last=1)), 0.0, 100)
    assert half < 2 * body + body + body + attention
