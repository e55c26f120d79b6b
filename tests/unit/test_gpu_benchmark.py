"""The GPU benchmark's arithmetic, and the whole program on a CPU with tiny shapes."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def work(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from common import gpu_work

    return gpu_work


def test_parameters_and_flops_are_those_of_the_models(work):
    """GFLOP per token of LoRA r16 at 2,048 tokens, all scored, and parameters in billions without norms."""
    wanted = {
        "Qwen3-0.6B": (3.27, 0.596),
        "Llama-3.2-1B": (5.48, 1.236),
        "Qwen3-4B": (18.4, 4.022),
        "Llama-3.1-8B": (32.2, 8.030),
    }
    for name, (gflop, billions) in wanted.items():
        shape = work.SHAPES[name]
        assert shape.flops_per_token(2048, 16, 1.0) / 1e9 == pytest.approx(gflop, rel=3e-3)
        assert shape.parameters / 1e9 == pytest.approx(billions, rel=1e-3)
        more = 2 * (shape.body + shape.head) - 6 * shape.adapter(16)  # the gradient of every weight, and no adapter
        assert shape.full_flops_per_token(2048, 1.0) - shape.flops_per_token(2048, 16, 1.0) == pytest.approx(more)


def test_tokens_per_step_fit_the_memory(work):
    eight = work.SHAPES["Llama-3.1-8B"]
    assert work.tokens_per_step(eight, [2048, 8192], 32768, 139 * 2**30) == 16384
    assert work.tokens_per_step(eight, [2048], 32768, 40 * 2**30) == 2048
    assert work.tokens_per_step(eight, [512], 4096, None) == 4096
    assert work.tokens_per_step(eight, [8192], 32768, 2**30) == 8192


def run(out: Path, *arguments: str) -> list[dict]:
    """The rows of a run without a GPU."""
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--tiny", "--out", str(out), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr
    return json.loads(out.read_text())["rows"]


@pytest.mark.nightly
def test_the_whole_program_runs_on_a_cpu(tmp_path):
    rows = {(row["model"], row["side"], row["row"], row["length"]): row for row in run(tmp_path / "a.json")}
    for model, length in itertools.product(("tiny-qwen3", "tiny-llama"), (16, 32, 64)):
        row = rows[model, "tunesmith", "default", length]
        assert len(row["losses"]) == len(row["step_seconds"]) == 13
        assert row["losses"][0] == pytest.approx(6.24, abs=0.1)
        assert row["losses"][-1] != row["losses"][0]
        assert row["tokens_per_second"] > 0
        assert rows[model, "trl", "default", length]["skipped"].startswith("not installed")
        for name in ("nf4", "full"):
            assert rows[model, "tunesmith", name, length]["losses"][0] == pytest.approx(row["losses"][0], abs=0.05)
        for name in ("fp8", "full, fp8 by row", "full, fp8 by tensor"):
            assert rows[model, "tunesmith", name, length]["skipped"] == "products in fp8 are for GPUs"


@pytest.mark.nightly
def test_rows_beyond_the_budget_are_listed_as_skipped(tmp_path):
    rows = run(tmp_path / "a.json", "--budget-seconds", "1", "--sides", "tunesmith")
    assert {row["skipped"] for row in rows} <= {"out of time", "products in fp8 are for GPUs"}
