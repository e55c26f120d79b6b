"""Rows of the GPU benchmark trained by Unsloth; started by gpu.py with a JSON file of settings."""

import sys

import unsloth  # noqa: F401  its import comes before those of the libraries it changes
from gpu_side import TARGETS, run_rows, settings_of
from gpu_trainer import train
from unsloth import FastLanguageModel


def load(given: dict, checkpointing: str | bool):
    model, tokenizer = FastLanguageModel.from_pretrained(
        given["model"],
        max_seq_length=max(row["length"] for row in given["rows"]),
        dtype=None,
        load_in_4bit=False,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=given["rank"],
        lora_alpha=given["alpha"],
        lora_dropout=0,
        bias="none",
        target_modules=TARGETS,
        use_gradient_checkpointing=checkpointing,
        random_state=given["seed"],
    )
    return model, tokenizer


def main(given: dict) -> None:
    """One process trains rows of one setting of checkpointing: it is decided when the model is made."""
    (checkpointing,) = {row["checkpointing"] for row in given["rows"]}
    model, tokenizer = load(given, "unsloth" if checkpointing else False)
    run_rows(given, lambda row, at_once: train(model, tokenizer, given, row, at_once))


if __name__ == "__main__":
    main(settings_of(sys.argv[1]))
