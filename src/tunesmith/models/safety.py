"""A model folder is data: its settings without the keys that load code, its tensors' names and shapes, no pickle."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from tunesmith.contained import check_file
from tunesmith.errors import Fix, ModelError, Unsafe, Where

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "prompt_encoder.safetensors", "loftq.safetensors")
MAX_CONFIG_BYTES = 4_000_000
MAX_CONFIG_DEPTH = 32
MODEL_TYPE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\Z")

# Keys that make a library import code or fetch compiled kernels; and every key that starts with an underscore.
HOSTILE = frozenset(
    [
        "attn_implementation",
        "auto_map",
        "custom_generate",
        "custom_pipelines",
        "experts_implementation",
        "kernel_config",
        "model_file",
        "trust_remote_code",
        "use_kernels",
    ]
)

# What a pickle, or an archive or container that may hold one, starts with.
PICKLE_MAGIC = {
    b"PK\x03\x04": "a zip archive, as torch.save writes it",
    b"PK\x05\x06": "an empty zip archive",
    b"PK\x07\x08": "a zip archive in parts",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    **{bytes((0x80, protocol)): "a pickle" for protocol in range(6)},
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"Rar!\x1a\x07": "a rar archive",
    b"\x93NUMPY": "a NumPy file, which may hold pickled objects",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, which may hold code",
}
# A pickle of protocol 0 or 1 has no magic: it begins with an opening and names what it would import, or a container.
OLD_PICKLE = re.compile(rb"(?:[(\]}]{0,3}[ci][A-Za-z_][\w.]*\n\w+\n|\([dl]p?[0-9]*\n|\(dq.|\]q.|\}q.)", re.DOTALL)
CONVERT = (
    "convert it once, in a container without network: load it with torch.load(file, weights_only=True) "
    "and write it with safetensors.torch.save_file"
)


def read_config(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`config.json` without the keys that load code, and the dotted names of the keys left out.

    Raises ModelError E084 for a file that is absent, not JSON or without a model type, E089 for quantised weights,
    E086 for the folder of an adapter, E512 for one that holds both.
    """
    path = folder / "config.json"
    if (folder / ADAPTER_CONFIG).is_file():
        raise two_in_one(folder) if holds_model(folder) else is_adapter(folder)
    config = read_json_object(path)
    stripped: list[str] = []
    clean = _strip(config, (), stripped)
    model_type = clean.get("model_type")
    if not isinstance(model_type, str) or not MODEL_TYPE.match(model_type):
        shown = "is missing" if model_type is None else f"is {str(model_type)[:80]!r}"
        raise ModelError(
            "E084",
            f"model_type {shown}: it names the architecture",
            where=Where(str(path), field="model_type"),
            fixes=["use the config.json that belongs to the weights"],
        )
    _refuse_quantised(clean, path)
    return clean, tuple(stripped)


def read_json_object(path: Path) -> dict[str, Any]:
    """A small JSON file of a model folder; ModelError E084 when it is not one."""
    where = Where(str(path))
    check_file(path)
    if path.exists() and not path.is_file():  # a pipe would wait for ever
        raise ModelError("E084", f"{path.name} is not a file", where=where)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
        if len(raw) > MAX_CONFIG_BYTES:
            raise ModelError("E084", f"{path.name} is larger than {MAX_CONFIG_BYTES // 1_000_000} MB", where=where)
        value = json.loads(raw)
    except FileNotFoundError as error:
        message = f"{path.parent} holds no {path.name}"
        raise ModelError("E084", message, where=where, fixes=["give the folder of a Hugging Face model"]) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError) as error:
        raise ModelError("E084", f"{path.name} cannot be read: {error}", where=where) from error
    if not isinstance(value, dict):
        raise ModelError("E084", f"{path.name} holds no JSON object", where=where)
    return value


def holds_model(folder: Path) -> bool:
    """Whether a folder holds config and weights of a whole model, and not those of an adapter alone."""
    return (folder / "config.json").is_file() and any(
        path.name not in ADAPTER_WEIGHTS for path in folder.glob("*.safetensors")
    )


def two_in_one(folder: Path) -> ModelError:
    """E512: libraries would load the base that the adapter names, instead of the model that lies there."""
    return ModelError(
        "E512",
        f"{folder} holds a whole model and the settings of an adapter: which is meant cannot be known",
        where=Where(str(folder / ADAPTER_CONFIG)),
        fixes=["move adapter_config.json and the adapter's weights into a folder of their own, and name the one meant"],
    )


def is_adapter(folder: Path) -> ModelError:
    """E086: the folder of an adapter stands where a whole model is wanted."""
    named = read_json_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    base = named if isinstance(named, str) and named else "BASE"
    return ModelError(
        "E086",
        f"{folder} is an adapter, not a whole model",
        where=Where(str(folder), field="model.path"),
        fixes=[
            Fix(
                f"go on from it: model.path={base} model.adapter_path={folder}",
                {"model.path": base, "model.adapter_path": str(folder)},
            ),
            Fix("merge it into a model", command=f"tunesmith merge {shlex.quote(str(folder))} OUT"),
        ],
    )


def is_hostile(key: str) -> bool:
    """Whether a key could make a library import code or fetch a kernel."""
    return key.startswith("_") or key in HOSTILE


def _strip(value: Any, at: tuple[str, ...], stripped: list[str]) -> Any:
    if len(at) > MAX_CONFIG_DEPTH:
        raise ModelError("E084", f"config.json is nested deeper than {MAX_CONFIG_DEPTH} levels")
    if isinstance(value, list):
        return [_strip(entry, (*at, str(index)), stripped) for index, entry in enumerate(value)]
    if not isinstance(value, dict):
        return value
    clean = {}
    for key, inner in value.items():
        if is_hostile(key):
            stripped.append(".".join((*at, key)))
        else:
            clean[key] = _strip(inner, (*at, key), stripped)
    return clean


def _refuse_quantised(config: dict[str, Any], path: Path) -> None:
    for part in (config, config.get("text_config")):
        found = part.get("quantization_config") if isinstance(part, dict) else None
        if found is not None:
            method = str(found.get("quant_method", "unknown"))[:40] if isinstance(found, dict) else "unknown"
            raise ModelError(
                "E089",
                f"the weights are quantised ({method}) in a form that Tunesmith does not read",
                where=Where(str(path), field="quantization_config"),
                evidence=["it reads int8 of torchao, int4 of compressed-tensors (symmetric, packed), and GGUF files"],
                fixes=[
                    Fix("use the same model in bf16, or its .gguf file"),
                    Fix("open it with vLLM", command=f"vllm serve {shlex.quote(str(path.parent))}"),
                ],
            )


def refuse_pickle(path: Path) -> None:
    """Unsafe E085 when the content, whatever the name, is a pickle or an archive that may hold one."""
    with path.open("rb") as file:
        head = file.read(512)
        size = file.seek(0, 2)
        file.seek(max(0, size - 1))
        last = file.read(1)
    kind = pickle_kind(head, last)
    if kind is not None:
        raise Unsafe(
            "E085",
            f"{path.name} is {kind}; loading it could run code hidden inside",
            where=Where(str(path)),
            evidence=["only safetensors weights are read, whatever the file is called"],
            fixes=[Fix("use a copy of the model with safetensors weights"), Fix(CONVERT)],
        )


def pickle_kind(head: bytes, last: bytes) -> str | None:
    """What a file is that begins with `head` and ends with the byte `last`, when that could run code."""
    if head[8:9] == b"{":  # the header of a safetensors file; its length may look like any magic
        return None
    found = next((kind for magic, kind in PICKLE_MAGIC.items() if head.startswith(magic)), None)
    if found is None and head[257:262] == b"ustar":
        return "a tar archive"
    return "a pickle" if found is None and last == b"." and OLD_PICKLE.match(head) else found
