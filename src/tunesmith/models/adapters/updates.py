"""Folders of plain LoRA as what they are: one update s B A for each of some layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from jaxtyping import Float
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor

from tunesmith.errors import Fix, ModelError, Where
from tunesmith.models.adapter_folder import FACTOR, PREFIX
from tunesmith.models.adapters.files import read_adapter_config, read_adapter_tensors
from tunesmith.models.adapters.spectral import begins_with_weights
from tunesmith.models.inventory import ADAPTER_FILE
from tunesmith.models.kinds import kind_of
from tunesmith.models.quantized.files import TAKEN, keep_base
from tunesmith.models.spectral import Factors
from tunesmith.models.stack import STACK_FILE, read_stack


@dataclass(frozen=True, slots=True)
class Update:
    """s B A of one layer, in fp32."""

    a: Float[Tensor, "R I"]
    b: Float[Tensor, "O R"]
    scale: float

    def dense(self) -> Float[Tensor, "O I"]:
        return self.scale * (self.b @ self.a)


@dataclass(frozen=True, slots=True)
class LowRankAdapter:
    """A folder of plain LoRA; `updates` by the names that layers have in its file, `embeddings` those of them that are.

    An embedding's update is that of its transpose, as PEFT keeps it.
    """

    folder: Path
    config: peft.LoraConfig
    updates: dict[str, Update]
    embeddings: frozenset[str]

    @property
    def rank(self) -> int:
        return max(len(update.a) for update in self.updates.values())


def read_low_rank(folder: Path) -> LowRankAdapter:
    """Read plain LoRA (rsLoRA too). Raises ModelError E362 for anything that is more than updates s B A."""
    config = read_adapter_config(folder)
    refuse_above(folder)
    if not isinstance(config, peft.LoraConfig) or not is_plain(config):
        raise no_updates(folder, method_told(config))
    sides: dict[str, dict[str, Tensor]] = {}
    embeddings: set[str] = set()
    for name, tensor in read_adapter_tensors(folder).items():
        match = FACTOR.match(name)
        if match is None:
            raise no_updates(folder, f"LoRA with {name.removeprefix(PREFIX)} beside it")
        sides.setdefault(match["module"], {})[match["side"]] = tensor.float()
        if match["embedding"]:
            embeddings.add(match["module"])
    updates = {
        module: Update(pair["A"], pair["B"], scale_of(config, module, len(pair["A"])))
        for module, pair in sides.items()
        if len(pair) == 2
    }
    if len(updates) < len(sides) or not updates:
        halves = sorted(sides.keys() - updates.keys())
        message = "the adapter's file holds no pairs of A and B"
        raise ModelError("E092", message, where=Where(str(folder / ADAPTER_FILE)), evidence=halves[:10])
    return LowRankAdapter(folder, config, updates, frozenset(embeddings))


def is_plain(config: peft.PeftConfig) -> bool:
    """Whether an adapter of these settings is LoRA without more."""
    if not isinstance(config, peft.LoraConfig) or isinstance(config, peft.AdaLoraConfig):
        return False
    return not config.use_dora and not begins_with_weights(config)


def scale_of(config: peft.LoraConfig, module: str, rank: int) -> float:
    """The s of a layer, as PEFT finds it by the patterns of its names."""
    patterns = config.alpha_pattern or {}
    alpha = patterns.get(get_pattern_key(list(patterns), module.removeprefix(PREFIX)), config.lora_alpha)
    return alpha / rank**0.5 if config.use_rslora else alpha / rank


def method_told(config: peft.PeftConfig) -> str:
    if begins_with_weights(config):
        return "LoRA that began with a part of the weights"
    kind = kind_of(config.to_dict())
    return {"dora": "DoRA", "adalora": "AdaLoRA", "ia3": "(IA)³", "vera": "VeRA", "oft": "OFT", "boft": "BOFT"}.get(
        kind, kind
    )


def refuse_above(folder: Path) -> None:
    """ModelError E362 for an adapter above others or a base of its own: what is made of it would not say so."""
    if stack := read_stack(folder):
        raise ModelError(
            "E362",
            f"{folder} was trained above adapters that are merged into its base",
            where=Where(str(folder / STACK_FILE)),
            evidence=[below.folder for below in stack],
            fixes=[Fix("merge all of them into a model", command=f"tunesmith merge {folder} OUT")],
        )
    if (folder / TAKEN).is_file():
        raise ModelError(
            "E362",
            f"{folder} holds LoftQ of several rounds, whose base was quantised for it alone",
            where=Where(str(folder / TAKEN)),
            fixes=[Fix("merge it into a model", command=f"tunesmith merge {folder} OUT")],
        )


def no_updates(folder: Path, kind: str) -> ModelError:
    return ModelError(
        "E362",
        f"{folder} holds {kind}, which is more than a product of two small matrices per layer",
        where=Where(str(folder)),
        fixes=[
            Fix("make it plain LoRA first", command=f"tunesmith adapters convert {folder} OUT --to lora"),
            Fix("merge them one after another", command="tunesmith adapters merge ADAPTER... MODEL OUT"),
        ],
    )


def write_low_rank(
    folder: Path,
    like: Sequence[LowRankAdapter],
    factors: Mapping[str, Factors],
    dtype: torch.dtype = torch.float32,
    base: str | None = None,
) -> None:
    """Write updates B A as a folder of plain LoRA whose scale is 1; other settings are those of the first of `like`.

    Ranks may differ from layer to layer: PEFT's patterns name those that are not the most common one.
    """
    config = deepcopy(like[0].config)
    common = Counter(len(a) for a, _ in factors.values()).most_common(1)[0][0]
    own = {module.removeprefix(PREFIX): len(a) for module, (a, _) in factors.items() if len(a) != common}
    config.r, config.lora_alpha = common, common
    config.rank_pattern, config.alpha_pattern = dict(own), dict(own)
    config.use_rslora, config.init_lora_weights, config.inference_mode = False, True, True
    config.base_model_name_or_path = base or config.base_model_name_or_path
    if not same_targets([one.config for one in like]):
        config.target_modules = sorted(module.removeprefix(PREFIX) for module in factors)
        config.layers_to_transform = config.layers_pattern = config.exclude_modules = None
    embeddings = frozenset[str]().union(*(one.embeddings for one in like))
    write_factors(folder, config, factors, dtype, embeddings)
    keep_base([one.folder for one in like], folder)


def write_factors(
    folder: Path,
    config: peft.LoraConfig,
    factors: Mapping[str, Factors],
    dtype: torch.dtype,
    embeddings: frozenset[str] = frozenset(),
) -> None:
    """The two files of a folder in PEFT's format."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for module, (a, b) in factors.items():
        form = ("lora_embedding_A", "lora_embedding_B") if module in embeddings else ("lora_A.weight", "lora_B.weight")
        for name, factor in zip(form, (a, b), strict=True):
            tensors[f"{module}.{name}"] = factor.to(dtype).contiguous()
    save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def same_targets(configs: Sequence[peft.LoraConfig]) -> bool:
    """Whether one rule of PEFT's names the layers of them all."""
    rules = [
        (str(sorted(one.target_modules or ())), one.layers_to_transform, one.layers_pattern, one.exclude_modules)
        for one in configs
    ]
    return all(rule == rules[0] for rule in rules)
