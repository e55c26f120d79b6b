"""What the settings of an adapter folder may hold, proven before any library takes them for its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError, Where
from tunesmith.models.headers import read_header
from tunesmith.models.safety import ADAPTER_CONFIG, read_json_object

TENSORS = "adapter_model.safetensors"
LARGEST = 2**20  # of a size, such as a rank or a number of learned tokens
DEEPEST = 1000  # layers

SIDES = ("r", "init_r", "target_r", "num_virtual_tokens")  # sizes that are a side of some tensor of the file
SIZES = (*SIDES, "oft_block_size", "boft_block_size", "boft_block_num", "boft_n_butterfly_factor", "adapter_len")
WIDTHS = ("token_dim", "num_attention_heads", "num_transformer_submodules", "encoder_hidden_size")
DEPTHS = ("num_layers", "encoder_num_layers", "adapter_layers")
NUMBERS = (
    "lora_alpha",
    "lora_dropout",
    "module_dropout",
    "boft_dropout",
    "vera_dropout",
    "encoder_dropout",
    "d_initial",
)
FLAGS = (
    "use_rslora", "use_dora", "fan_in_fan_out", "inference_mode", "prefix_projection", "block_share", "coft",
    "use_cayley_neumann", "save_projection", "lora_bias", "alora", "use_qalora",
)  # fmt: skip
TEXTS = ("base_model_name_or_path", "peft_type", "task_type", "bias", "revision", "peft_version")
NAMES = (
    "target_modules", "modules_to_save", "exclude_modules", "feedforward_modules", "target_parameters",
    "layers_pattern",
)  # fmt: skip


def read_adapter_object(folder: Path) -> dict[str, Any]:
    """`adapter_config.json`, every value of the type it must have. Raises ModelError E084, E093, and E094 for layers
    that are used several times."""
    path = folder / ADAPTER_CONFIG
    settings = read_json_object(path)
    for keys, (fits, want) in KINDS.items():
        for key in keys:
            value = settings.get(key)
            if value is not None and not fits(value):
                raise _refused(path, key, f"want {want}, not {_told(value)}")
    if settings.get("layer_replication") is not None:
        raise ModelError(
            "E094",
            "adapters that use layers of the base several times are not supported",
            where=Where(str(path), field="layer_replication"),
        )
    return settings


def check_sides(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse (E093) a rank, or a number of tokens, that no tensor of the folder has for a side, from the header."""
    file = folder / TENSORS
    if not file.is_file():
        return
    longest = max((max(info.shape, default=0) for info in read_header(file).values()), default=0)
    pattern = settings.get("rank_pattern") or {}
    ranks = {f"rank_pattern.{name}": rank for name, rank in pattern.items() if type(rank) is int}
    for key, value in {**{key: settings.get(key) or 0 for key in SIDES}, **ranks}.items():
        if value > longest:
            raise _refused(
                folder / ADAPTER_CONFIG, key, f"it is {value:,}, and no tensor of {TENSORS} has so long a side"
            )


def _refused(path: Path, key: str, reason: str) -> ModelError:
    fixes = ["copy the adapter again, both files of it"]
    return ModelError(
        "E093", f"{key[:80]} of {path.name}: {reason}", where=Where(str(path), field=key[:80]), fixes=fixes
    )


def _told(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**18:
        return "a number of more than 18 digits"
    return repr(value)[:60]


def _is_size(value: object, most: int = LARGEST) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_depth(value: object) -> bool:
    return _is_size(value, DEEPEST)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e9 and not math.isnan(value)  # type: ignore[arg-type]


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_names(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(map(_is_text, value)))


def _are_ranks(value: object) -> bool:
    """By layer a size, or of AdaLoRA which directions are kept."""
    return isinstance(value, dict) and all(
        _is_size(rank) or (isinstance(rank, list) and all(map(_is_flag, rank))) for rank in value.values()
    )


def _are_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _are_layers(value: object) -> bool:
    return _is_depth(value) or (isinstance(value, list) and all(map(_is_depth, value)))


def _is_beginning(value: object) -> bool:
    return isinstance(value, bool | str)


KINDS: dict[tuple[str, ...], tuple[Callable[[object], bool], str]] = {
    (*SIZES, *WIDTHS): (_is_size, f"a whole number from 0 to {LARGEST:,}"),
    DEPTHS: (_is_depth, f"a whole number from 0 to {DEEPEST:,}"),
    NUMBERS: (_is_number, "a number"),
    FLAGS: (_is_flag, "true or false"),
    TEXTS: (_is_text, "a text"),
    NAMES: (_are_names, "a name or a list of names"),
    ("rank_pattern",): (_are_ranks, "a rank by name"),
    ("alpha_pattern",): (_are_numbers, "a number by name"),
    ("layers_to_transform",): (_are_layers, "numbers of layers"),
    ("init_lora_weights", "init_weights"): (_is_beginning, "true, false or a name"),
}
