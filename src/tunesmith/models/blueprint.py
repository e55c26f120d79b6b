"""What a new model will be, before it has weights: a folder with config.json and tokenizer, and its tensors' shapes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tunesmith.contained import check_contained
from tunesmith.errors import Fix, ModelError, Where
from tunesmith.models.cache import Progress, made_once
from tunesmith.models.fresh_config import FreshConfig
from tunesmith.models.headers import TensorInfo
from tunesmith.models.locate import locate
from tunesmith.models.padding import optional_json, text_of
from tunesmith.models.save import TOKENIZER_FILES
from tunesmith.paths import home

FORM = 1  # of folders written here; a change of what is in them makes it another
FIELD = "model.fresh.tokenizer"
GENERATION = "generation_config.json"
NOT_OURS = ("_", "transformers_version")  # what keys of config.json that are left out begin with


def blueprint(fresh: FreshConfig, progress: Progress | None = None) -> Path:
    """The folder of the model without its weights, made on first use; keyed by what is in it.

    Raises ModelError E396 when there is no tokenizer where `fresh` says, and what locating it raises.
    """
    source = locate_tokenizer(fresh.tokenizer, progress)
    about = [
        FORM,
        fresh.kind,
        [fresh.layers, fresh.hidden, fresh.heads, fresh.key_heads, fresh.width, fresh.inside],
        [fresh.max_positions, fresh.rope_base, fresh.tied_embeddings, fresh.deviation],
        [hashlib.sha256(path.read_bytes()).hexdigest() for path in files_of(source)],
    ]
    folder = home() / "models" / f"blueprint-{key_of(about)}"
    return made_once(folder, lambda stage: write_blueprint(fresh, source, stage), progress)


def key_of(about: Any) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def locate_tokenizer(name: str, progress: Progress | None = None) -> Path:
    """The local folder that holds tokenizer.json; a folder needs nothing else."""
    local = Path(name).expanduser()
    folder = local if local.is_dir() and not (local / "run.json").exists() else locate(name, progress=progress)
    check_contained(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            "E396",
            f"{folder} holds no tokenizer.json",
            where=Where(str(folder), field=FIELD),
            fixes=[Fix(f"{FIELD}=starter", {FIELD: "starter"}), "save the tokenizer with transformers as a fast one"],
        )
    return folder


def files_of(source: Path) -> list[Path]:
    """Files of the tokenizer; what else the source's own generation config says is not the new model's."""
    return [source / name for name in TOKENIZER_FILES if (source / name).is_file()]


def write_blueprint(fresh: FreshConfig, source: Path, folder: Path) -> None:
    for path in files_of(source):
        if path.name != GENERATION:
            shutil.copyfile(path, folder / path.name)
    size, marks = vocabulary_of(source)
    config = config_of(fresh, size, marks)
    model = skeleton(config)
    config.architectures = [type(model).__name__]
    settings: dict[str, Any] = json.loads(config.to_json_string())
    kept = {name: value for name, value in settings.items() if not name.startswith(NOT_OURS)}
    write_json(folder / "config.json", {**kept, "dtype": "float32"})
    write_json(folder / GENERATION, {name: value for name, value in marks.items() if value is not None})


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def vocabulary_of(source: Path) -> tuple[int, dict[str, Any]]:
    """How many rows the tokenizer needs, and the ids that begin, end and fill a text."""
    path = source / "tokenizer.json"
    try:
        backend = Backend.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises no narrower class
        raise ModelError(
            "E396", f"tokenizer.json cannot be read: {error}", where=Where(str(path), field=FIELD)
        ) from error
    size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
    named = {**optional_json(source / "special_tokens_map.json"), **optional_json(source / "tokenizer_config.json")}
    ids = {role: backend.token_to_id(text_of(named.get(f"{role}_token"))) for role in ("bos", "eos", "pad")}
    declared = optional_json(source / GENERATION).get("eos_token_id")
    stops = [id for id in (declared if isinstance(declared, list) else [declared]) if is_row(id, size)]
    stops += [ids["eos"]] if ids["eos"] is not None and ids["eos"] not in stops else []
    end = stops[0] if len(stops) == 1 else stops or None
    return size, {"bos_token_id": ids["bos"], "eos_token_id": end, "pad_token_id": ids["pad"]}


def is_row(id: Any, size: int) -> bool:
    return type(id) is int and 0 <= id < size


def config_of(fresh: FreshConfig, vocabulary: int, marks: dict[str, Any]) -> PreTrainedConfig:
    """The config that transformers builds the model from: full attention in every layer, no bias, no soft cap.

    It names no padding token: transformers never trains the row of one, and many tokenizers pad with the token that
    ends a text.
    """
    rotary: dict[str, Any] = {"rope_type": "default", "rope_theta": fresh.rope_base}
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": fresh.hidden,
        "num_hidden_layers": fresh.layers,
        "num_attention_heads": fresh.heads,
        "num_key_value_heads": fresh.key_heads,
        "head_dim": fresh.width,
        "intermediate_size": fresh.inside,
        "max_position_embeddings": fresh.max_positions,
        "rope_parameters": rotary,
        "rms_norm_eps": 1e-6,
        "initializer_range": fresh.deviation,
        "tie_word_embeddings": fresh.tied_embeddings,
        **marks,
        "pad_token_id": None,
    }
    if fresh.kind.norms == "sandwich":
        settings |= {
            "layer_types": ["full_attention"] * fresh.layers,
            "query_pre_attn_scalar": fresh.width,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        }
    if fresh.kind.word == "gemma3":
        settings["rope_parameters"] = {"full_attention": rotary, "sliding_attention": rotary}
    return AutoConfig.for_model(fresh.kind.model_type, **settings)


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def read_skeleton(folder: Path) -> PreTrainedModel:
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return skeleton(AutoConfig.for_model(settings.pop("model_type"), **settings))


def described(folder: Path) -> dict[str, TensorInfo]:
    """Names and shapes of the tensors that the folder's model will have, a tied head only once."""
    return infos(read_skeleton(folder).named_parameters())


def infos(parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> dict[str, TensorInfo]:
    return {name: TensorInfo("F32", tuple(parameter.shape)) for name, parameter in parameters}
