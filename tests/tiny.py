"""Tiny real things for tests: a byte-level BPE tokenizer and model folders, built in seconds without a network."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.data.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "What is the capital of France? The capital of France is Paris.",
    "You are a helpful assistant.",
    "Please write a short poem about the sea and the moon.",
    "user assistant system tool messages content role",
    "Hello, how are you? I am fine, thank you. How can I help you today?",
    "Add the numbers 12 and 30: the answer is 42.",
    '{"name": "Ada", "date": "2024-01-05", "amount": 12.5, "unit": "kg"}',
    "Translate to German: Good morning. Guten Morgen.",
)

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tiny_tokenizer(folder: Path, template: str | None = CHATML, *, vocabulary: int = 400) -> Path:
    """Write a byte-level BPE tokenizer of at most `vocabulary` tokens into `folder` and return it.

    Ids 0, 1, 2 are <|endoftext|>, <|im_start|>, <|im_end|>; eos is <|im_end|> and pad is the same token, as in SmolLM2.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        bos_token="<|im_start|>",
        unk_token="<|endoftext|>",
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    generation = {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder


def tiny_model_folder(
    folder: Path, architecture: str = "llama", *, template: str | None = CHATML, seed: int = 0, **settings: Any
) -> Path:
    """Write a random fp32 model (hidden 64, 2 layers, 4 heads, 2 kv heads) with the tiny tokenizer into `folder`.

    `architecture` is a transformers model type ("llama", "qwen2", "gemma2", ...); `settings` override its config.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny_tokenizer(folder, template)
    size = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "vocab_size": _vocabulary(folder),
        "eos_token_id": 2,
        "bos_token_id": 1,
        "pad_token_id": 2,
        "tie_word_embeddings": True,
    }
    config = AutoConfig.for_model(architecture, **{**size, **settings})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 2
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def with_template(tokenizer: Tokenizer, template: str) -> Tokenizer:
    """The tokenizer of the same model with another chat template in its folder."""
    from tunesmith.data.tokenizer import load_tokenizer

    with TemporaryDirectory() as place:
        for path in tokenizer.folder.glob("*.json"):
            copyfile(path, Path(place) / path.name)
        (Path(place) / "chat_template.jinja").write_text(template, encoding="utf-8")
        return load_tokenizer(Path(place))


def _vocabulary(folder: Path) -> int:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return max(max(content["model"]["vocab"].values()), *(token["id"] for token in content["added_tokens"])) + 1
