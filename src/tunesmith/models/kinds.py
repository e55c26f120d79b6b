"""Which method an adapter folder belongs to, told from its settings without a library."""

from __future__ import annotations

from pathlib import Path

from tunesmith.models.adapter_config import AdapterConfig
from tunesmith.models.adapter_types import read_adapter_object
from tunesmith.models.safety import ADAPTER_CONFIG

PLAIN = ("lora", "rslora", "lora_fa", "loftq", "pissa", "olora")  # methods whose folders hold plain LoRA
BESIDE_ROWS = ("lora", "rslora", "dora")  # methods beside which rows of new tokens are trained
NAMES = {"prompt_tuning": "prompt", "prefix_tuning": "prefix", "adaption_prompt": "llama_adapter"}  # PEFT's and ours
# Kinds of adapters that change no weights: they cannot be merged, nor stand beside others.
NO_WEIGHTS = frozenset(["bottleneck", *NAMES.values(), "p_tuning", "cpt", "multitask_prompt_tuning", "xlora"])


def kind_of_folder(folder: Path) -> str | None:
    """The method that goes on from the folder; None where there are no settings of an adapter."""
    return kind_of(read_adapter_object(folder)) if (folder / ADAPTER_CONFIG).is_file() else None


def kind_of(settings: dict) -> str:
    """Of an `adapter_config.json`."""
    kind = str(settings.get("peft_type")).rpartition(".")[2].lower()
    return "dora" if kind == "lora" and settings.get("use_dora") else NAMES.get(kind, kind)


def kind_wanted(settings: AdapterConfig) -> str:
    """The kind of folder that a method goes on from."""
    return "lora" if settings.word in PLAIN else settings.word
