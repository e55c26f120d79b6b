"""Folders with matrices in int8 (torchao) or int4 (compressed-tensors), made into plain ones by what the files say."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tunesmith.errors import Diagnostic, Fix, ModelError, Where
from tunesmith.models.cache import Progress, made_once, remembered_digest, require_space, silent
from tunesmith.models.headers import INDEX, SINGLE, read_headers
from tunesmith.models.safety import read_json_object
from tunesmith.paths import home

Bits = Literal["int8", "int4"]
PACKED = 8  # numbers of 4 bits in one of 32
SHARD = 4_000_000_000  # bytes of a file that is written
NOTE = "rounded-from.json"
PARTS = {  # by the last word of a tensor's name
    **{f"_weight_{part}": part for part in ("qdata", "scale", "zero_point")},
    **{f"weight_{part}": part for part in ("packed", "scale", "shape")},
}
BESIDE = ("*.json", "*.jinja", "tokenizer.model", "*.txt")
LEFT = (INDEX, "export.json", "tunesmith-manifest.json")


def bits_of(config: Mapping[str, Any]) -> Bits | None:
    """What the matrices are rounded to by config.json; None for plain weights, and for forms that are not read here."""
    found = config.get("quantization_config")
    if not isinstance(found, dict):
        return None
    match found.get("quant_method"):
        case "torchao" if "Int8WeightOnlyConfig" in str(found.get("quant_type")):
            return "int8"
        case "compressed-tensors" if found.get("format") == "pack-quantized" and all_4_bits(found):
            return "int4"
    return None


def all_4_bits(found: Mapping[str, Any]) -> bool:
    groups = found.get("config_groups")
    weights = [one.get("weights") for one in groups.values()] if isinstance(groups, dict) and groups else [None]
    wanted = {"num_bits": 4, "type": "int", "symmetric": True}
    return all(isinstance(one, dict) and wanted.items() <= one.items() and not one.get("actorder") for one in weights)


def plain(folder: Path, progress: Progress | None = None) -> Path:
    """The folder itself, or the copy with plain weights that is made of a rounded one at its first use."""
    if not (folder / "config.json").is_file():
        return folder
    config = read_json_object(folder / "config.json")
    bits = bits_of(config)
    if bits is None:
        return folder
    report = progress or silent

    def make(stage: Path) -> None:
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        require_space(stage.parent, size * (2 if bits == "int8" else 4), f"opening the {bits} weights of {folder}")
        write_plain(folder, stage, config, report)

    return made_once(home() / "models" / f"{bits}-{key_of(folder)[:16]}", make, report)


def rounded_from(folder: Path) -> Bits | None:
    """What the weights were rounded to of which this folder is the plain copy."""
    path = folder / NOTE
    return read_json_object(path).get("bits") if path.is_file() else None


def rounded_copy(folder: Path, name: str) -> Diagnostic | None:
    """W529 for the plain copy of rounded weights that `name` means."""
    bits = rounded_from(folder)
    if bits is None:
        return None
    message = f"{name} holds {bits} weights: what is used is a plain copy, numbers times scales, in {folder}"
    return Diagnostic("W529", message, "warning", fixes=(Fix("name the model that it was made of, which is exact"),))


def key_of(folder: Path) -> str:
    """Of everything that the copy is made of."""
    paths = sorted({path for name in ("*.safetensors", *BESIDE) for path in folder.glob(name)})
    told = [f"{path.name}\0{remembered_digest(path)}\n" for path in paths if path.name not in LEFT]
    return hashlib.sha256("".join(told).encode()).hexdigest()


def write_plain(folder: Path, stage: Path, config: Mapping[str, Any], progress: Progress) -> None:
    for path in {path for name in BESIDE for path in folder.glob(name)}:
        if path.name not in LEFT:
            shutil.copy(path, stage)
    kept = {name: value for name, value in config.items() if name != "quantization_config"}
    (stage / "config.json").write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (stage / NOTE).write_text(json.dumps({"bits": bits_of(config)}) + "\n", encoding="utf-8")
    files: dict[Path, list[str]] = {}
    held: dict[str, Tensor] = {}
    count = len(places_of(folder))
    for done, (name, tensor) in enumerate(plain_tensors(folder)):
        if held and sum(each.nbytes for each in held.values()) + tensor.nbytes > SHARD:
            files[write_shard(held, stage, len(files))] = list(held)
            held = {}
        held[name] = tensor
        progress("convert", done / count)
    files[write_shard(held, stage, len(files))] = list(held)
    if len(files) == 1:
        next(iter(files)).rename(stage / SINGLE)
        return
    places = {name: path.name for path, names in files.items() for name in names}
    (stage / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}, indent=1) + "\n", encoding="utf-8")


def write_shard(held: dict[str, Tensor], stage: Path, number: int) -> Path:
    path = stage / f"model-{number + 1:05}.safetensors"
    save_file(held, path, metadata={"format": "pt"})
    return path


def plain_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor by its name in the model, rounded ones in the type of their scales. ModelError E525."""
    for name, path in places_of(folder).items():
        if name.rpartition(".")[2] not in PARTS:
            yield name, tensor_in(path, name)
    for module, parts in rounded_parts(folder):
        try:
            yield f"{module}.weight", multiplied(parts).to(parts["scale"].dtype)
        except (KeyError, ValueError, RuntimeError) as error:
            bits = "int4" if "packed" in parts else "int8"
            raise ModelError(
                "E525",
                f"the rounded weights of {module} cannot be read: {str(error)[:200]}",
                where=Where(str(folder), field=module),
                evidence=[f"{part}: {tuple(found.shape)}" for part, found in parts.items()],
                fixes=[
                    Fix("write it anew", command=f"tunesmith export MODEL OUT --dtype {bits}"),
                    "use the same model in bf16",
                ],
            ) from error


def rounded_parts(folder: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Of every rounded matrix its module, and numbers, scales and shape as they are stored."""
    places = places_of(folder)
    modules: dict[str, dict[str, str]] = {}
    for name in places:
        module, _, last = name.rpartition(".")
        if last in PARTS:
            modules.setdefault(module, {})[PARTS[last]] = name
    for module, parts in modules.items():
        yield module, {part: tensor_in(places[name], name) for part, name in parts.items()}


def places_of(folder: Path) -> dict[str, Path]:
    """The file of every tensor of the model."""
    names, places = read_headers(folder), dict[str, Path]()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            places |= {name: path for name in file.keys() if name in names}  # noqa: SIM118
    return places


def tensor_in(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def multiplied(parts: Mapping[str, Tensor]) -> Tensor:
    """Numbers times scales, in fp32. ValueError or KeyError for parts that do not fit each other."""
    scales = parts["scale"].float().flatten(1)
    if "packed" in parts:
        rows, width = parts["shape"].tolist()
        numbers = unpacked(parts["packed"])[:, :width]
    else:
        numbers = parts["qdata"]
        rows, width = numbers.shape
    if parts.get("zero_point", torch.zeros(1)).any():
        raise ValueError("their zero is not at zero")
    if numbers.shape != (rows, width) or len(scales) != rows or width % scales.shape[1]:
        raise ValueError("numbers and scales do not fit each other")
    return (numbers.float().unflatten(1, (scales.shape[1], -1)) * scales[..., None]).flatten(1)


def unpacked(numbers: Tensor) -> Tensor:
    """Numbers of -8..7 from those of 32 bits that hold eight each."""
    places = 4 * torch.arange(PACKED, dtype=torch.int32)
    return ((numbers[..., None] >> places) & 15).flatten(1) - 8
