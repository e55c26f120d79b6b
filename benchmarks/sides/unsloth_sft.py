"""One measured run of Unsloth's FastLanguageModel under TRL's SFTTrainer, on a CPU; started by sft.py."""

import json
import sys
from pathlib import Path

import unsloth  # isort: skip  (has to come before the libraries that it changes)
import torch
from memory import memory_peak
from peft_adapter import TARGETS, load_adapter
from trainer_clock import Clock, outcome
from trl_run import fit


def load_model(settings: dict):
    """With LoRA a base in the type of the computation; without, weights in fp32 and computation under autocast."""
    full = settings["tuning"] == "full"
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        settings["model"],
        max_seq_length=settings["max_length"],
        dtype=torch.float32 if full or settings["dtype"] == "float32" else torch.bfloat16,
        load_in_4bit=False,
        full_finetuning=full,
        use_gradient_checkpointing=settings["checkpointing"],
    )
    if full:
        return model, tokenizer
    model = unsloth.FastLanguageModel.get_peft_model(
        model,
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        target_modules=TARGETS,
        use_gradient_checkpointing=settings["checkpointing"],
        random_state=settings["seed"],
        max_seq_length=settings["max_length"],
    )
    load_adapter(model, settings)
    return model, tokenizer


def train(settings: dict) -> dict:
    torch.set_num_threads(settings["threads"])
    baseline, clock = memory_peak(), Clock()
    model, tokenizer = load_model(settings)
    fit(settings, model, tokenizer, clock, {} if settings["checkpointing"] else {"gradient_checkpointing": False})
    return outcome(clock, baseline)


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    Path(given["out"]).write_text(json.dumps(train(given)))
