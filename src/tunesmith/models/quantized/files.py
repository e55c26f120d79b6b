"""What an adapter folder says of the quantised base that it was trained on, beside what PEFT reads of it.

`quantized_base.json` has the settings. LoftQ of several rounds quantises a weight less what the round before had found;
`loftq.safetensors` has that, so that the same base is made from the model as it is stored, to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.errors import Fix, ModelError, Where
from tunesmith.models.config import ModelConfig
from tunesmith.models.loftq_config import LoftqConfig
from tunesmith.models.quantization_config import Quantization, QuantizationConfig, Unquantized
from tunesmith.models.quantized.linear import QuantizedLinear
from tunesmith.models.quantized.loftq import Start
from tunesmith.models.quantized.packing import FIELD, Packing
from tunesmith.models.safety import read_config, read_json_object
from tunesmith.models.tensors import read_tensors

SETTINGS = "quantized_base.json"
TAKEN = "loftq.safetensors"
KINDS: TypeAdapter[Quantization] = TypeAdapter(Quantization)


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """By their names in the model below the adapter."""
    base = model if isinstance(model, PreTrainedModel) else model.get_base_model()  # pyright: ignore[reportCallIssue]
    assert isinstance(base, PreTrainedModel)
    found = {name: module for name, module in base.named_modules() if isinstance(module, QuantizedLinear)}
    return {name.removesuffix(".base_layer"): module for name, module in found.items()}


def describe_base(model: nn.Module, folder: Path) -> None:
    """Write what the folder of an adapter says of its base; nothing where that is not quantised."""
    layers = quantized_layers(model)
    if not layers:
        return
    write_settings(next(iter(layers.values())).packed.settings, folder)
    taken: dict[str, Tensor] = {}
    for name, layer in layers.items():
        if layer.taken is not None:
            taken |= {f"{name}.{kind}": each.contiguous().cpu() for kind, each in zip("ab", layer.taken, strict=True)}
    if taken:
        save_file(taken, folder / TAKEN, metadata={"format": "pt"})


def base_of_folder(folder: Path) -> QuantizationConfig:
    """How the base was held that the adapter of the folder was trained on."""
    path = folder / SETTINGS
    if not path.is_file():
        return Unquantized()
    try:
        return KINDS.validate_python(read_json_object(path))
    except ValidationError as error:
        raise ModelError("E093", "the settings of the quantised base cannot be read", where=Where(str(path))) from error


def keep_base(folders: Sequence[Path], out: Path) -> None:
    """What is made of adapters on bases that are held alike is for a base held so."""
    held = [base_of_folder(folder) for folder in folders]
    if not isinstance(held[0], Unquantized) and all(each == held[0] for each in held):
        write_settings(held[0], out)


def write_settings(settings: QuantizationConfig, folder: Path) -> None:
    (folder / SETTINGS).write_text(json.dumps(settings.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")


def packing_for(settings: ModelConfig, adapter: Path | None = None) -> Packing | None:
    """How the base is packed, alone or below the adapter of a folder; None when it is not.

    Raises ModelError E326 when that adapter began with LoftQ, on a base that is held otherwise.
    """
    wanted = settings.quantization
    if adapter is not None and (adapter / TAKEN).is_file():
        held = base_of_folder(adapter)
        if held != wanted:
            raise other_base(adapter, held)
        return Packing(wanted, taken=read_taken(adapter / TAKEN))
    return None if isinstance(wanted, Unquantized) else Packing(wanted)


def packing_to_begin(settings: ModelConfig, folder: Path) -> Packing | None:
    """The same for a new adapter, with where it begins when that is told from the exact weights."""
    adapter = settings.adapter
    if not isinstance(adapter, LoftqConfig) or isinstance(settings.quantization, Unquantized):
        return packing_for(settings)
    depth = int(read_config(folder)[0].get("num_hidden_layers", 0)) if adapter.last else 0
    return Packing(settings.quantization, start_of(adapter, depth))


def start_of(adapter: LoftqConfig, depth: int) -> Start:
    first = max(0, depth - adapter.last) if adapter.last else 0
    return Start(adapter.rank, adapter.scale, adapter.rounds, adapter.iterations, adapter.targets, first)


def read_taken(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    tensors = read_tensors(path)
    names = {name.rpartition(".")[0] for name in tensors}
    return {name: (tensors[f"{name}.a"], tensors[f"{name}.b"]) for name in names}


def other_base(adapter: Path, held: QuantizationConfig) -> ModelError:
    changes = {FIELD: held.model_dump(mode="json")}
    return ModelError(
        "E326",
        f"this adapter began with LoftQ on a base in {held.told()}, and fits no other",
        where=Where(str(adapter), field=FIELD),
        fixes=[Fix(f"{FIELD}={held.word}", changes)],
    )
