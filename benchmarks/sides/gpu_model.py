"""Write a model folder with random weights, made on the device from its configuration; started by gpu.py."""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast


def write_tokenizer(folder: str) -> None:
    """Bytes, a padding token and an end: programs ask for a tokenizer although they are given tokens."""
    texts = ["<|pad|>", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={text: number for number, text in enumerate(texts)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>").save_pretrained(folder)


def write_model(given: dict) -> None:
    config = dict(given["config"])
    torch.manual_seed(given["seed"])
    with torch.device(given["device"]):
        made = AutoConfig.for_model(config.pop("model_type"), **config)
        model = AutoModelForCausalLM.from_config(made, dtype=given["dtype"])
    model.save_pretrained(given["model"], max_shard_size="4GB")


if __name__ == "__main__":
    settings = json.loads(Path(sys.argv[1]).read_text())
    write_model(settings)
    write_tokenizer(settings["model"])
