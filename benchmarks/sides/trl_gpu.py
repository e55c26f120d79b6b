"""Rows of the GPU benchmark trained by TRL + PEFT; started by gpu.py with a JSON file of settings."""

import sys

from gpu_side import TARGETS, run_rows, settings_of
from gpu_trainer import on_device, train
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(given: dict) -> None:
    base = AutoModelForCausalLM.from_pretrained(given["model"], dtype=given["dtype"]).to(on_device(given))
    adapter = LoraConfig(r=given["rank"], lora_alpha=given["alpha"], target_modules=TARGETS, task_type="CAUSAL_LM")
    model, tokenizer = get_peft_model(base, adapter), AutoTokenizer.from_pretrained(given["model"])
    run_rows(given, lambda row, at_once: train(model, tokenizer, given, row, at_once))


if __name__ == "__main__":
    main(settings_of(sys.argv[1]))
