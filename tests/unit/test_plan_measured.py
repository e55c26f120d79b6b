"""The plan against whole training processes on the starter model."""

import json
import os
import subprocess
import sys

import pytest

from tunesmith.models.cache import is_intact
from tunesmith.models.starter import starter_folder

FULL = ["model.adapter=full", "train.optimizer.lr=2e-5"]
IN_BACKWARD = ["train.optimizer.in_backward=true", "train.clip_norm=0"]


def chats(path, count=160):
    """Conversations of 30 to 400 tokens."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            words = "The sea was calm and the moon stood over the hills. " * (1 + number * 7 % 30)
            question = {"role": "user", "content": f"Tell me story {number}, please."}
            file.write(json.dumps({"messages": [question, {"role": "assistant", "content": words}]}) + "\n")
    return path


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["data.max_length=1024", "train.microbatch_tokens=2048"],
        ["train.activation_checkpointing=full"],
        ["train.activation_checkpointing=selective"],
        ["data.max_length=1024", "train.microbatch_tokens=2048", "train.activation_checkpointing=full"],
        FULL,
        [*FULL, "data.max_length=512", "train.microbatch_tokens=2048"],
        [*FULL, *IN_BACKWARD, "train.microbatch_tokens=2048", "train.sequences_per_step=8"],
        [*FULL, *IN_BACKWARD, "train.sequences_per_step=4", "train.activation_checkpointing=selective"],
    ],
    ids=["lora", "lora-2048", "lora-recomputed", "lora-selective", "lora-2048-recomputed",
         "full", "full-2048", "full-in-backward", "full-in-backward-selective"],
)  # fmt: skip
def test_planned_memory_is_within_10_percent_of_the_measured_peak(tmp_path, settings):
    planned, actual = planned_and_measured(tmp_path, settings)
    assert planned == pytest.approx(actual, rel=0.1)


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("tokens", [512, 2048])
@pytest.mark.parametrize(
    "settings",
    [
        *([f"model.adapter.method={name}"] for name in ("dora", "adalora", "oft", "boft", "ia3", "vera", "bottleneck")),
        *([f"model.adapter.method={name}"] for name in ("prompt", "p_tuning", "prefix", "llama_adapter", "norms")),
        ["model.quantization=nf4"],
        ["model.quantization=int8"],
        ["model.new_tokens=[<one>,<two>]"],
        ["model.base_products=int8"],
    ],
    ids=lambda settings: settings[0].partition("=")[2],
)
def test_planned_memory_of_every_method_is_within_15_percent_of_the_measured_peak(tmp_path, settings, tokens):
    planned, actual = planned_and_measured(tmp_path, [*settings, f"train.microbatch_tokens={tokens}"], steps=3)
    assert planned == pytest.approx(actual, rel=0.15)


def planned_and_measured(tmp_path, settings, steps=6):
    if not is_intact(starter_folder()):
        pytest.skip("the starter model is not fetched here")
    data = chats(tmp_path / "chats.jsonl")
    words = ["train", "sft", f"data.train={data}", f"run.folder={tmp_path}", "run.name=measured"]
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", *words, f"train.steps={steps}", *settings, "--yes", "--json"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    actual = json.loads(done.stdout.splitlines()[-1])["peak_memory_bytes"]
    planned = json.loads((tmp_path / "measured" / "plan.json").read_text())["memory"]["peak"]
    return planned, actual
