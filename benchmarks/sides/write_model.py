"""A random-initialised model of a known shape, with the tokenizer of another one; written once, the same for a seed."""

import json
import os
import shutil
import sys
from pathlib import Path

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def write(settings: dict) -> dict:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    donor, folder = Path(settings["tokenizer"]), Path(settings["model"])
    tokens = json.loads((donor / "config.json").read_text())
    config = Qwen3Config(**settings["shape"], **{name: tokens[name] for name in SPECIAL})
    torch.manual_seed(settings["seed"])
    stage = folder.with_name(f"{folder.name}.{os.getpid()}")
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(stage)
    for name in TOKENIZER:
        shutil.copy(donor / name, stage / name)
    stage.rename(folder)
    return {}


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    Path(given["out"]).write_text(json.dumps(write(given)))
