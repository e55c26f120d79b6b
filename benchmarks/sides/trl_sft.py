"""One measured run of TRL's SFTTrainer; started by sft.py in TRL's own environment with a JSON file of settings."""

import json
import sys
from pathlib import Path

import torch
from memory import memory_peak
from peft import PeftModel
from trainer_clock import Clock, outcome
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl_run import fit


def load_model(settings: dict):
    """With LoRA a base in the type of the computation; without, weights in fp32 and computation under autocast."""
    if settings["tuning"] == "full":
        return AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=settings["dtype"])
    return PeftModel.from_pretrained(model, settings["adapter"], is_trainable=True)


def train(settings: dict) -> dict:
    torch.set_num_threads(settings["threads"])
    baseline, clock = memory_peak(), Clock()
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    fit(settings, load_model(settings), tokenizer, clock, {"gradient_checkpointing": settings["checkpointing"]})
    return outcome(clock, baseline)


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    Path(given["out"]).write_text(json.dumps(train(given)))
