"""The kinds of training that are stopped and resumed: an objective and settings for each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

FULL: Mapping[str, object] = {"model.adapter": "full"}
FREEZE: Mapping[str, object] = {"model.adapter": "{method: freeze, last: 1}"}
EVERY: tuple[str, ...] = ("lora", "full", "freeze", "nf4", "dpo", "kto", "orpo", "reward")  # in all 48 cases
FRESH = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "tokenizer": "{folder}/model"}
METHODS: dict[str, tuple[str, Mapping[str, object]]] = {
    "lora": ("sft", {}),
    "full": ("sft", FULL),
    "freeze": ("sft", FREEZE),
    "nf4": ("sft", {"model.quantization": "nf4"}),
    "dpo": ("dpo", {}),
    "kto": ("kto", {}),
    "orpo": ("orpo", {}),
    "reward": ("reward", {}),
    "from_scratch": ("sft", {"model.path": None, **{f"model.fresh.{key}": FRESH[key] for key in FRESH}, **FULL}),
    "qlora_paged": (
        "sft",
        {
            "model.quantization": "{name: nf4, double_quantization: true}",
            "train.optimizer.paging": "file",
            "train.checkpoint.in_background": False,  # E492
        },
    ),
    "dora": ("sft", {"model.adapter.method": "dora"}),
    "adalora": ("sft", {"model.adapter": "{method: adalora, rank: 2, start: 2, every: 2, dropout: 0.1}"}),
    "lisa": ("sft", {"model.adapter": "{method: lisa, layers: 1, every: 2}"}),
    "galore": (
        "sft",
        {**FULL, "train.optimizer": "{name: galore, rank: 8, every: 3, states: int8, lr: 1e-3}"},
    ),
    "adamw8bit": ("sft", {**FULL, "train.optimizer": "adamw8bit"}),
    "muon": ("sft", {**FULL, "train.optimizer": "muon"}),
    "schedule_free": ("sft", {"train.optimizer": "schedule_free", "train.schedule": "constant"}),
    "average": ("sft", {"train.ema": "{decay: 0.9}", "train.neftune_alpha": 5}),
    "bfloat16": ("sft", {**FULL, "model.dtype": "bfloat16"}),
    "trunk": ("sft", {**FREEZE, "train.cache_trunk": "disk"}),
    "general": (
        "sft",
        {
            "data.general.train": "{folder}/sequence_held_out.jsonl",
            "data.general.share": 0.2,
            "train.l2_to_start": 0.1,
        },
    ),
    "moving_reference": ("dpo", {"model.reference.update_every": 2}),
    "ranking": ("ranking_reward", {}),
    "process": ("process_reward", {}),
    "classify": ("classify", {}),
}
FURTHER = tuple(name for name in METHODS if name not in EVERY)  # in a handful of cases


def settings_of(folder: Path, method: str) -> dict[str, object]:
    """The settings of a method, with the inputs of `folder`."""
    settings = METHODS[method][1]
    return {key: str(value).format(folder=folder) if is_place(value) else value for key, value in settings.items()}


def is_place(value: object) -> bool:
    return isinstance(value, str) and value.startswith("{folder}")
