"""What an adapter folder holds, told from its settings and headers alone; no weight is read, no library needed."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.contained import check_contained
from tunesmith.errors import Fix, ModelError, UsageError, Where
from tunesmith.models.adapter_types import read_adapter_object
from tunesmith.models.headers import TensorInfo, read_header, read_headers
from tunesmith.models.inventory import ADAPTER_FILE, LAYER
from tunesmith.models.kinds import kind_of
from tunesmith.models.safety import ADAPTER_CONFIG
from tunesmith.track.index import find_run
from tunesmith.track.run_dir import is_run

PREFIX = "base_model.model."
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.weight)?\Z")
OTHER = re.compile(
    r"(?P<module>.+)\.(?:ia3_l|vera_lambda_[bd]|oft_R(?:\.weight)?|boft_[Rs]|lora_E|lora_magnitude_vector(?:\.weight)?|"
    r"bottleneck_(?:down|up)\.(?:weight|bias))\Z"
)
BEGINNINGS = ("pissa", "olora")  # of PEFT's LoRA whose folder is against a base that was changed


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """One adapter folder; `misfit` says why it does not fit the model that was asked about, empty when it fits."""

    folder: str
    method: str
    rank: tuple[int, ...]  # every rank that occurs, the most common first; of OFT and BOFT the size of a block
    alpha: float | None
    targets: tuple[str, ...]
    layers: int
    parameters: int
    bytes: int
    dtype: str
    base: str
    misfit: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def adapter_folder(name: str) -> Path:
    """The adapter folder that a path or a run means. Raises ModelError E093 when there is none."""
    local = Path(name).expanduser()
    if (local / ADAPTER_CONFIG).is_file():
        return local
    if is_run(local) or not local.exists():
        try:
            local = find_run(name).path / "adapter"
        except UsageError as error:
            raise no_adapter(name, [str(error.diagnostic.message)]) from error
        if (local / ADAPTER_CONFIG).is_file():
            return local
    raise no_adapter(name, [])


def no_adapter(name: str, evidence: list[str]) -> ModelError:
    return ModelError(
        "E093",
        f"{name} is no adapter folder and no run that has written one: there is no {ADAPTER_CONFIG}",
        where=Where(str(name)),
        evidence=evidence,
        fixes=[Fix("list the runs", command="tunesmith runs"), Fix("give a folder in PEFT's format")],
    )


def adapter_folders(name: str) -> list[Path]:
    """The adapter that a name means, or all of those in the folders right below it."""
    local = Path(name).expanduser()
    if local.is_dir() and not is_run(local) and not (local / ADAPTER_CONFIG).is_file():
        below = sorted(path.parent for path in local.glob(f"*/{ADAPTER_CONFIG}"))
        below += sorted(path.parent for path in local.glob(f"*/adapter/{ADAPTER_CONFIG}"))
        if below:
            return below
    return [adapter_folder(name)]


def describe_adapter(folder: Path, model: Path | None = None) -> AdapterFacts:
    """Read settings and header of one adapter; with `model` also whether the adapter fits it."""
    check_contained(folder)
    settings, tensors = read_adapter_object(folder), read_header(folder / ADAPTER_FILE)
    method = method_of(settings)
    modules = sorted({match["module"] for match in map(_matched, tensors) if match})
    words = {module.rpartition(".")[2] for module in modules}
    kinds = Counter(info.dtype for info in tensors.values())
    return AdapterFacts(
        folder=str(folder),
        method=method,
        rank=_ranks(method, settings, tensors),
        alpha=settings.get("lora_alpha"),
        targets=tuple(sorted(words)),
        layers=len(modules),
        parameters=sum(info.numel for info in tensors.values()),
        bytes=sum(info.nbytes for info in tensors.values()),
        dtype=kinds.most_common(1)[0][0] if kinds else "",
        base=str(settings.get("base_model_name_or_path") or ""),
        misfit=None if model is None else next(misfits(tensors, read_headers(model)), ""),
    )


def method_of(settings: Mapping[str, Any]) -> str:
    """A recipe's word for it, or the type that PEFT names; `pissa` and `olora` are PEFT's own, on a changed base."""
    kind = kind_of(dict(settings))
    if kind != "lora":
        return kind
    begins = str(settings.get("init_lora_weights")).lower()
    beginning = next((word for word in BEGINNINGS if begins.startswith(word)), None)
    return beginning or ("rslora" if settings.get("use_rslora") else "lora")


def _matched(name: str) -> re.Match[str] | None:
    return FACTOR.match(name) or OTHER.match(name)


def _ranks(method: str, settings: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> tuple[int, ...]:
    found = Counter(
        info.shape[0] for name, info in tensors.items() if (match := FACTOR.match(name)) and match["side"] == "A"
    )
    if found:
        return tuple(rank for rank, _ in found.most_common())
    given = settings.get(f"{method}_block_size" if method in ("oft", "boft") else "r")
    return (given,) if isinstance(given, int) and given else ()


def place_of(name: str) -> str:
    """A tensor's name from its layer on: what stands before differs between files and modules of one model."""
    match = LAYER.search(name)
    return name[match.start() :].lstrip(".") if match else name.rpartition(".")[0].rpartition(".")[2]


def misfits(adapter: Mapping[str, TensorInfo], model: Mapping[str, TensorInfo]) -> Iterator[str]:
    """Why tensors of an adapter have no place in a model, one reason a layer."""
    sides: dict[str, dict[str, tuple[int, ...]]] = {}
    widths: dict[str, int] = {}
    for name, info in adapter.items():
        factor = FACTOR.match(name)
        if factor is not None:
            sides.setdefault(factor["module"], {})[factor["side"]] = info.shape
        elif (other := OTHER.match(name)) is not None:
            sides.setdefault(other["module"], {})
            if (width := side_of(name, info.shape)) is not None:
                widths[other["module"]] = width
    places = {place_of(name): info for name, info in model.items()}
    for module, factors in sides.items():
        plain = module.removeprefix(PREFIX)
        weight = places.get(place_of(f"{plain}.weight"))
        inside = place_of(f"{plain}.weight").removesuffix("weight")
        if weight is None and (factors or not any(place.startswith(inside) for place in places)):
            yield f"the model has no {plain}"
        elif weight is not None and len(factors) == 2 and len(weight.shape) == 2:
            wanted = {math.prod(weight.shape), *weight.shape}
            have = factors["B"][0], factors["A"][1]
            if {math.prod(have), *have} != wanted:
                yield f"{plain} is {weight.shape[0]} x {weight.shape[1]}, the adapter's {have[0]} x {have[1]}"
        elif weight is not None and module in widths and widths[module] not in weight.shape:
            yield f"{plain} is {weight.shape[0]} x {weight.shape[1]}, and the adapter is {widths[module]} wide"


def side_of(name: str, shape: tuple[int, ...]) -> int | None:
    """Of a tensor that belongs to one side of a linear layer: how many outputs or inputs that layer has."""
    if re.search(r"\.(?:ia3_l|vera_lambda_b|boft_s|lora_magnitude_vector(?:\.weight)?)\Z", name):
        return math.prod(shape)
    if name.endswith(".boft_R"):
        return shape[1] * shape[2]
    if re.search(r"\.oft_R(?:\.weight)?\Z", name):
        return shape[0] * round((1 + math.sqrt(1 + 8 * shape[1])) / 2)  # blocks, of so many numbers above a diagonal
    return shape[0] if name.endswith(".bottleneck_up.weight") else None
