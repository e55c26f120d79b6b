"""Model folders with matrices in int8 (torchao) and int4 (compressed-tensors), which transformers and vLLM load.

torchao packs no numbers of 4 bits on a CPU, so int4 is written in the format that vLLM reads everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tunesmith.errors import Fix, UsageError, Where
from tunesmith.export.gguf.kquants import symmetric_scales
from tunesmith.export.gguf.types import SENSITIVITY
from tunesmith.models.load import from_folder, quietly
from tunesmith.models.rounded import PACKED, Bits, multiplied, rounded_parts

BITS: tuple[Bits, ...] = ("int8", "int4")
PACKAGES: Mapping[Bits, str] = {"int8": "torchao", "int4": "compressed_tensors"}
INSTALL = Fix("install what reads and writes it", command="pip install 'tunesmith[torchao]'")
GROUP = 32  # weights of a row that share a scale in int4: 4.5 bits for each
# What is lost of numbers that fall as a bell, in rows of 4,096 for int8: squared error over squares.
LOSSES: Mapping[Bits, float] = {"int8": 7.6e-5, "int4": 7.0e-3}


def check_package(bits: Bits) -> None:
    """UsageError E439 where the package that reads and writes the form is not installed."""
    if find_spec(PACKAGES[bits]) is None:
        raise UsageError(
            "E439",
            f"{bits} weights are read back by {PACKAGES[bits].replace('_', '-')}, which is not installed",
            where=Where("command line", field="--dtype"),
            fixes=[INSTALL, Fix("write bf16 weights", command="tunesmith export MODEL OUT --dtype bfloat16")],
        )


def check_layers(config: PreTrainedConfig, bits: Bits) -> None:
    """UsageError E440 for a model whose layers keep most of their weights elsewhere than in linear layers."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    outside = {parameter for end in ends if end is not None for parameter in end.parameters()}
    sizes = {name: each.numel() for name, each in model.named_parameters() if each not in outside}
    rounded = sum(sizes.get(f"{name}.weight", 0) for name in linear_names(config))
    if 2 * rounded < sum(sizes.values()):
        share = rounded / sum(sizes.values())
        raise UsageError(
            "E440",
            f"{bits} rounds linear layers, which hold {share:.0%} of the weights in this {config.model_type}'s layers",
            where=Where("command line", field="--dtype"),
            fixes=[Fix("write bf16 weights", command="tunesmith export MODEL OUT --dtype bfloat16")],
        )


def limit_of(bits: Bits) -> float:
    """The largest mean KL divergence from the source, as for the types of GGUF files."""
    return float(f"{SENSITIVITY * LOSSES[bits]:.2g}")


def write_bits(bits: Bits, plain: Path, stage: Path, dtype: torch.dtype, shard: str) -> None:
    """Round the matrices of the `plain` folder and write them with its config."""
    if bits == "int8":
        write_int8(plain, stage, dtype, shard)
    else:
        write_int4(read_folder(plain, dtype), stage, shard)


def linear_names(config: PreTrainedConfig) -> set[str]:
    """The matrices that are rounded: those of linear layers, but not the head."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    head = model.get_output_embeddings()
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head}


def write_int8(plain: Path, stage: Path, dtype: torch.dtype, shard: str) -> None:
    """One scale for each row; transformers rounds the weights as it loads them."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    wanted = TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))

    def read() -> tuple[PreTrainedModel, dict]:
        model = AutoModelForCausalLM.from_pretrained(
            str(plain), dtype=dtype, quantization_config=wanted, use_safetensors=True, trust_remote_code=False
        )
        return model, {}

    quietly(plain, read)[0].save_pretrained(str(stage), max_shard_size=shard)


def write_int4(model: PreTrainedModel, stage: Path, shard: str) -> None:
    """One scale for every 32 weights of a row, eight numbers of -8..7 packed in one of 32 bits."""
    config, names = model.config, linear_names(model.config)
    tensors: dict[str, Tensor] = {}
    left: list[str] = []
    for name, tensor in model.state_dict().items():
        module = name.removesuffix(".weight")
        if module in names and name != module and tensor.shape[1] % GROUP == 0:
            tensors |= {f"{module}.{part}": found for part, found in packed(tensor).items()}
        else:
            tensors[name] = tensor
            left += [module] if module in names and name != module else []
    config.quantization_config = compressed(left)
    model.save_pretrained(str(stage), state_dict=tensors, max_shard_size=shard)


def packed(weights: Tensor) -> dict[str, Tensor]:
    rows, width = weights.shape
    groups = weights.float().numpy().reshape(rows, width // GROUP, GROUP)
    scales = torch.from_numpy(symmetric_scales(groups, 8)).to(weights.dtype)
    inverse = scales.float().numpy()[..., None]
    q = np.rint(np.divide(groups, inverse, out=np.zeros_like(groups), where=inverse != 0)).clip(-8, 7).astype(np.int64)
    eights = (q + 8).reshape(rows, width // PACKED, PACKED) << (4 * np.arange(PACKED))
    found = eights.sum(-1).astype(np.uint32).view(np.int32)
    return {
        "weight_packed": torch.from_numpy(found),
        "weight_scale": scales,
        "weight_shape": torch.tensor([rows, width]),
    }


def compressed(left: list[str]) -> dict[str, object]:
    """The part of config.json by which transformers, vLLM and SGLang know the form."""
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head", *left],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**weights, "dynamic": False},
                "input_activations": None,
                "output_activations": None,
            }
        },
    }


def read_folder(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The folder as transformers reads it; what the packages say of their progress is left out."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with redirect_stderr(StringIO()):
        return quietly(folder, lambda: from_folder(AutoModelForCausalLM, folder, config, dtype, "eager"))[0]


def stored_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The rounded matrices by what the files alone say: numbers times scales, in fp32."""
    for module, parts in rounded_parts(folder):
        yield f"{module}.weight", multiplied(parts)


@torch.no_grad()
def as_stored(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with its matrices rounded as those of the folder are."""
    places = dict(model.named_parameters())
    for name, weights in stored_weights(folder):
        places[name].copy_(weights)
    return model
