"""Adapter folders made of adapter folders: several combined into one, one brought into another form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import peft
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import Fix, ModelError, UsageError, Where
from tunesmith.export.huggingface import check_rows
from tunesmith.export.opening import ModelSource
from tunesmith.export.proof import NEXT_TOKENS
from tunesmith.export.staging import staged
from tunesmith.models.adapter_folder import PREFIX, adapter_folder
from tunesmith.models.adapters import load_adapter, read_adapter_config, read_adapter_tensors, save_adapter
from tunesmith.models.adapters.base import Tuners
from tunesmith.models.adapters.combining import Kept, Mix, combine, principal, product_triples
from tunesmith.models.adapters.merging import merge_one, not_mergeable
from tunesmith.models.adapters.spectral import begins_with_weights
from tunesmith.models.adapters.updates import (
    LowRankAdapter,
    is_plain,
    method_told,
    read_low_rank,
    refuse_above,
    write_factors,
    write_low_rank,
)
from tunesmith.models.config import ModelConfig
from tunesmith.models.inventory import ADAPTER_FILE
from tunesmith.models.kinds import kind_of
from tunesmith.models.load import DTYPES, load_base
from tunesmith.models.locate import locate
from tunesmith.models.new_rows import has_rows
from tunesmith.models.quantized.files import base_of_folder, keep_base
from tunesmith.models.spectral import Factors

Form = Literal["lora", "rslora", "oft", "oft_series"]
FORMS: tuple[Form, ...] = ("lora", "rslora", "oft", "oft_series")
USUAL_RANK = 16


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """A new adapter folder. `kept` is the share of the updates' squares in it, `error` the relative length of the rest.

    `difference` is that of the predictions before and after, in nats per token, where a base model was at hand.
    """

    folder: str
    method: str
    layers: int
    ranks: tuple[int, int]
    kept: float
    error: float
    lowest: float
    layer: str
    difference: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def reported(out: Path, method: str, count: int, kept: Kept, difference: float | None = None) -> AdapterReport:
    told = kept.to_json()
    first, last = told["ranks"]
    return AdapterReport(
        str(out), method, count, (first, last), told["kept"], told["error"], told["lowest"], told["layer"], difference
    )


def add_adapters(names: Sequence[str], out: Path, mix: Mix, base: str | None = None) -> AdapterReport:
    """Combine several adapters of one base into the new folder `out`, plain LoRA in PEFT's format.

    Raises ModelError E361 for adapters of different bases (unless `base` says which one they are all for), E362 for
    those that are no low-rank updates, E363 for shapes that differ, UsageError E360 for numbers that make no sense.
    """
    if len(names) < 2:
        message = "there is only one adapter: two or more are combined"
        fixes = [Fix("bring one into another form", command="tunesmith adapters convert FOLDER OUT --rank R")]
        raise UsageError("E360", message, where=Where("command line"), fixes=fixes)
    adapters = [read_low_rank(adapter_folder(name)) for name in names]
    if base is None:
        check_one_base(adapters)
    with staged(out, "the adapter") as stage:
        factors, kept = combine(adapters, mix)
        write_low_rank(stage, adapters, factors, base=base)
    return reported(out, mix.rule, len(factors), kept)


def check_one_base(adapters: Sequence[LowRankAdapter]) -> None:
    bases = {str(one.folder): str(one.config.base_model_name_or_path or "") for one in adapters}
    if len({base_key(base) for base in bases.values()}) > 1:
        raise ModelError(
            "E361",
            "the adapters belong to different base models",
            evidence=[f"{folder}: {base or 'does not say'}" for folder, base in bases.items()],
            fixes=[Fix("--base BASE", effect="if all of them were trained on this one, under different names")],
        )


def base_key(base: str) -> str:
    """The same for two names of one folder."""
    return str(Path(base).resolve()) if base and Path(base).exists() else base


@dataclass(frozen=True, slots=True)
class Wish:
    """What a conversion is to give; `model` is the base where the adapter's own note of it does not lead there."""

    to: Form = "lora"
    rank: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    model: str | None = None


def convert_adapter(name: str, out: Path, wish: Wish) -> AdapterReport:
    """Bring an adapter into another form, in the new folder `out`.

    Plain LoRA, rsLoRA and VeRA become plain LoRA exactly, PiSSA and OLoRA of twice the rank; DoRA, OFT and (IA)³ by
    the best approximation of a rank, and the report says what is lost. Raises UsageError E367 for forms that are
    not defined for the adapter.
    """
    folder = adapter_folder(name)
    config = read_adapter_config(folder)
    if wish.rank is not None and wish.rank < 1:
        raise UsageError("E367", "the rank is at least 1", where=Where("command line", field="--rank"))
    with staged(out, "the adapter") as stage:
        if isinstance(config, peft.OFTConfig) and wish.to in ("oft", "oft_series"):
            return turn_oft(folder, config, stage, out, wish)
        if wish.to in ("oft", "oft_series"):
            raise undefined(folder, config, wish.to)
        if is_plain(config):
            adapter = read_low_rank(folder)
            factors, kept = reduced(adapter, wish.rank)
            write_low_rank(stage, [adapter], factors, DTYPES[wish.dtype])
            difference = None
        else:
            factors, kept, difference = from_weights(folder, stage, wish)
        if wish.to == "rslora":
            make_rank_stabilised(stage)
    return reported(out, wish.to, len(factors), kept, difference)


def undefined(folder: Path, config: peft.PeftConfig, to: str) -> UsageError:
    return UsageError(
        "E367",
        f"{folder} holds {method_told(config)}, and no way leads from there to {to}",
        where=Where("command line", field="--to"),
        fixes=["--to lora"],
    )


def reduced(adapter: LowRankAdapter, rank: int | None) -> tuple[dict[str, Factors], Kept]:
    """Every update with the scale inside, cut to a rank where it is above."""
    factors: dict[str, Factors] = {}
    kept = Kept()
    for module, update in adapter.updates.items():
        a, b = update.a, update.scale * update.b
        if rank is None or rank >= len(a):
            factors[module] = a, b
            kept.add(module, 1.0, 1.0, len(a))
            continue
        u, s, vh = product_triples(a, b)
        root = s[:rank].sqrt()
        factors[module] = (root[:, None] * vh[:rank]).float(), (u[:, :rank] * root).float()
        kept.add(module, s.square().sum().item(), s[:rank].square().sum().item(), rank)
    return factors, kept


def make_rank_stabilised(folder: Path) -> None:
    """The same scales written as alpha / sqrt(r)."""
    config = read_adapter_config(folder)
    assert isinstance(config, peft.LoraConfig)
    patterns = config.alpha_pattern or {}
    config.alpha_pattern = {name: math.sqrt(alpha) for name, alpha in patterns.items()}  # pyright: ignore[reportAttributeAccessIssue]
    config.lora_alpha, config.use_rslora = math.sqrt(config.r), True  # pyright: ignore[reportAttributeAccessIssue]
    config.inference_mode = True
    config.save_pretrained(str(folder))


def turn_oft(folder: Path, config: peft.OFTConfig, stage: Path, out: Path, wish: Wish) -> AdapterReport:
    """OFT between PEFT's exact rotation and its series, which turns the other way round for the same numbers."""
    series = wish.to == "oft_series"
    tensors = read_adapter_tensors(folder)
    if config.use_cayley_neumann != series:
        tensors = {name: -tensor if ".oft_R" in name else tensor for name, tensor in tensors.items()}
    kept, width = Kept(), 0
    for name, tensor in tensors.items():
        if ".oft_R" in name:
            exact, by_series = rotations(tensor.float(), series=False), rotations(-tensor.float(), series=True)
            whole = exact.square().sum().item()
            lost = 0.0 if config.use_cayley_neumann == series else (exact - by_series).square().sum().item()
            width = exact.shape[-1]
            kept.add(name.rpartition(".oft_R")[0], whole, whole - lost, width)
    config.use_cayley_neumann, config.inference_mode = series, True
    stage.mkdir()
    turned = {name: tensor.to(DTYPES[wish.dtype]).contiguous() for name, tensor in tensors.items()}
    save_file(turned, stage / ADAPTER_FILE, metadata={"format": "pt"})
    config.save_pretrained(str(stage))
    keep_base([folder], stage)
    return reported(out, wish.to, len(tensors), kept)


def rotations(numbers: torch.Tensor, *, series: bool) -> torch.Tensor:
    """Blocks (I - Q)(I + Q)^-1, or PEFT's five terms I + 2Q + 2Q² + 2Q³ + Q⁴, of the numbers above a diagonal."""
    width = round((1 + math.sqrt(1 + 8 * numbers.shape[1])) / 2)
    rows, columns = torch.triu_indices(width, width, 1)
    q = torch.zeros(len(numbers), width, width)
    q[:, rows, columns] = numbers
    q = q - q.transpose(1, 2)
    one = torch.eye(width).expand_as(q)
    if series:
        return one + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q
    return torch.linalg.solve(one + q, one - q, left=False)


def from_weights(folder: Path, stage: Path, wish: Wish) -> tuple[dict[str, Factors], Kept, float]:
    """Plain LoRA from what an adapter does to the weights of its base; the difference in predictions is measured."""
    config = read_adapter_config(folder)
    refuse_above(folder)
    if not isinstance(config, Tuners):
        raise not_mergeable(kind_of(config.to_dict()), folder)
    if config.modules_to_save:
        message = f"{folder} trains whole modules beside the adapter ({', '.join(config.modules_to_save)})"
        fixes = [Fix("merge it into a model", command=f"tunesmith merge {folder} OUT")]
        raise ModelError("E362", message, where=Where(str(folder)), fixes=fixes)
    if has_rows(config):
        message = f"{folder} trains rows of new tokens beside the adapter"
        fixes = [Fix("merge it into a model", command=f"tunesmith merge {folder} OUT")]
        raise ModelError("E362", message, where=Where(str(folder)), fixes=fixes)
    base = find_base(config, folder, wish.model)
    held = base_of_folder(folder).model_dump()
    settings = ModelConfig.model_validate({"path": str(base), "dtype": "float32", "quantization": held})
    model = load_adapter(load_base(base, settings), folder).eval()
    assert isinstance(model, PeftModel), "the folder is one of PEFT's"
    rows = check_rows(ModelSource(base, settings, adapter=folder), load_tokenizer(base))
    wanted = NEXT_TOKENS.predict(model, rows)
    named = str(config.base_model_name_or_path or base)
    if begins_with_weights(config):
        save_adapter(model, stage, named)
        adapter = read_low_rank(stage)
        factors, kept = reduced(adapter, wish.rank)
        write_low_rank(stage, [adapter], factors, DTYPES[wish.dtype])
    else:
        factors, kept = changes_of(model, wish.rank or rank_of(config))
        modules = sorted(module.removeprefix(PREFIX) for module in factors)
        plain = lora_config(modules, factors, str(config.task_type or "CAUSAL_LM"), named)
        write_factors(stage, plain, factors, DTYPES[wish.dtype])
        keep_base([folder], stage)
    del model
    again = load_adapter(load_base(base, settings), stage).eval()
    return factors, kept, NEXT_TOKENS.differ(wanted, NEXT_TOKENS.predict(again, rows))


def find_base(config: peft.PeftConfig, folder: Path, model: str | None) -> Path:
    named = model or config.base_model_name_or_path
    if not named:
        raise UsageError(
            "E367",
            f"{folder} does not say which model it belongs to, and its form needs the weights of that model",
            where=Where("command line", field="--model"),
            fixes=["--model BASE"],
        )
    return locate(named)


def rank_of(config: peft.PeftConfig) -> int:
    if isinstance(config, peft.AdaLoraConfig):
        return config.init_r
    return config.r if isinstance(config, peft.LoraConfig | peft.VeraConfig) else USUAL_RANK


@torch.no_grad()
def changes_of(model: PeftModel, rank: int) -> tuple[dict[str, Factors], Kept]:
    """The best approximation, of a rank, to what an adapter changes in every weight; it is merged on the way."""
    factors: dict[str, Factors] = {}
    kept = Kept()
    for module, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer):
            weight = layer.get_base_layer().weight
            assert isinstance(weight, torch.Tensor)
            before = weight.clone()
            merge_one(layer)
            changed = layer.get_base_layer().weight
            assert isinstance(changed, torch.Tensor)
            factors[module], whole, left = principal(changed - before, rank)
            kept.add(module, whole, left, len(factors[module][0]))
    return factors, kept


def lora_config(modules: list[str], factors: dict[str, Factors], task: str, base: str) -> peft.LoraConfig:
    """Settings of plain LoRA with a scale of 1 on layers by their whole names."""
    ranks = {module.removeprefix(PREFIX): len(a) for module, (a, _) in factors.items()}
    common = max(ranks.values())
    own = {module: rank for module, rank in ranks.items() if rank != common}
    return peft.LoraConfig(
        r=common,
        lora_alpha=common,
        rank_pattern=own,
        alpha_pattern=dict(own),
        target_modules=modules,
        task_type=task,  # pyright: ignore[reportArgumentType]
        base_model_name_or_path=base,
        inference_mode=True,
    )
