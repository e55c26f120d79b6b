"""The adapter that every side starts from; run as a script, it writes one."""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def lora(settings: dict) -> LoraConfig:
    return LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=0.0,
        target_modules=TARGETS,
        task_type="CAUSAL_LM",
    )


def load_adapter(model: torch.nn.Module, settings: dict) -> None:
    """Put the weights of the file into a model that already has an adapter of this shape."""
    weights = load_file(f"{settings['adapter']}/adapter_model.safetensors")
    loaded = set_peft_model_state_dict(model, weights)
    if loaded.unexpected_keys:
        raise SystemExit(f"the adapter does not fit: {loaded.unexpected_keys[:3]}")


def write_adapter(settings: dict) -> dict:
    torch.manual_seed(settings["seed"])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=settings["dtype"])
    get_peft_model(model, lora(settings)).save_pretrained(settings["adapter"])
    return {}


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    Path(given["out"]).write_text(json.dumps(write_adapter(given)))
