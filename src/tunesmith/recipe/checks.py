"""Settings that contradict one another: each with both fields and one way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from tunesmith.configuring.catalogue import plain
from tunesmith.configuring.layers import DEFAULT, RANK, Origin
from tunesmith.errors import Diagnostic, Fix, Where
from tunesmith.models.adapter_config import FreezeConfig, FullConfig, RsloraConfig, TargetedConfig
from tunesmith.models.prompt_config import LlamaAdapterConfig
from tunesmith.recipe.adalora_checks import cut_ranks
from tunesmith.recipe.clash import Clash
from tunesmith.recipe.fresh_checks import fresh_model
from tunesmith.recipe.guard_checks import GUARD_RULES
from tunesmith.recipe.objective_checks import OBJECTIVE_RULES
from tunesmith.recipe.optimizer_checks import averages, drawn, projected, rates
from tunesmith.recipe.prompt_checks import prompts
from tunesmith.recipe.quantization_checks import quantized_base
from tunesmith.recipe.settings import Recipe
from tunesmith.recipe.step_checks import automatic_warmup, company, in_backward
from tunesmith.recipe.token_checks import new_tokens


def contradictions(recipe: Recipe, origins: Mapping[str, Origin], path: str) -> list[Diagnostic]:
    """All clashes of the recipe; warnings (W) change nothing, errors (E) must stop."""
    return [_diagnostic(clash, origins, path) for rule in RULES for clash in rule(recipe, origins)]


def _diagnostic(clash: Clash, origins: Mapping[str, Origin], path: str) -> Diagnostic:
    written = [name for name in clash.fields if origins.get(name, DEFAULT).kind != "default"]
    first = (written or list(clash.fields))[0]
    origin = origins.get(first, DEFAULT)
    where = replace(origin.where, field=first) if origin.kind in ("file", "default") else origin.where
    places = [f"{name}: {origins.get(name, DEFAULT)}" for name in clash.fields]
    words = " ".join(f"{key}={_word(value)}" for key, value in clash.set.items())
    fix = Fix(words, clash.set, f"tunesmith train {path} {words}" if path else None, clash.effect)
    level = "warning" if clash.code.startswith("W") else "error"
    return Diagnostic(clash.code, clash.message, level, where or Where(), tuple(places), (fix,))


def _word(value: Any) -> str:
    return "" if value is None else plain(value)


def _step_size(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    train = recipe.train
    fields = ("train.tokens_per_step", "train.sequences_per_step")
    both = train.tokens_per_step is not None and origins.get(fields[1], DEFAULT).kind != "default"
    if both and train.sequences_per_step is not None:
        message = f"a step is {train.tokens_per_step} tokens and also {train.sequences_per_step} sequences"
        yield Clash(message, fields, {"train.sequences_per_step": None}, effect="tokens decide")
    if train.tokens_per_step is None and train.sequences_per_step is None:
        yield Clash("a step has neither tokens nor sequences", fields, {"train.sequences_per_step": 16})


def _products(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    fields = ("model.base_products", "model.adapter.method")
    if recipe.model.base_products != "exact" and isinstance(recipe.model.adapter, FullConfig):
        message = f"products of frozen weights in {recipe.model.base_products}, and every weight is trained"
        yield Clash(message, fields, {"model.base_products": "exact"})
    elif recipe.model.base_products != "exact" and recipe.model.adapter.reads_weights:
        message = f"{recipe.model.adapter.title} reads the frozen weights themselves, not their products in 8 bits"
        yield Clash(message, fields, {"model.base_products": "exact"}, "E315")
    elif recipe.model.base_products != "exact" and isinstance(recipe.model.adapter, LlamaAdapterConfig):
        message = "adaption prompts ask each layer for its weights, and products in 8 bits take their place"
        yield Clash(message, fields, {"model.base_products": "exact"}, "E329")


def _length(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    train = recipe.train
    warmup = train.schedule.warmup
    if train.steps is not None and warmup != "auto" and warmup >= 1 and warmup > train.steps:
        message = f"{warmup:g} warm-up steps, but the run has {train.steps}"
        yield Clash(message, ("train.schedule.warmup", "train.steps"), {"train.schedule.warmup": 0.03})
    steps, epochs = (RANK[origins.get(name, DEFAULT).kind] for name in ("train.steps", "train.epochs"))
    if train.steps is not None and epochs >= steps > 0:
        message = f"train.steps: {train.steps} decides the length; train.epochs: {train.epochs:g} is not used"
        yield Clash(message, ("train.epochs", "train.steps"), {"train.steps": None}, "W010", "epochs decide")


def _early_stopping(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    train = recipe.train
    if train.early_stopping is None or train.early_stopping.watch == "general":
        return
    if not recipe.data.eval:
        message = "early stopping watches the evaluation loss, but there is no held-out data"
        fields = ("train.early_stopping.patience", "data.eval")
        yield Clash(message, fields, {"train.early_stopping": None}, effect="or give data.eval=FILE")
    elif train.evaluate_every == 0:
        message = "early stopping watches the evaluation loss, but it is measured only at the end"
        yield Clash(message, ("train.early_stopping.patience", "train.evaluate_every"), {"train.evaluate_every": 50})


def _evaluation(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    if recipe.train.evaluate_every > 0 and not recipe.data.eval and not recipe.data.general.eval:
        message = f"an evaluation loss every {recipe.train.evaluate_every} steps, but there is no held-out data"
        fields = ("train.evaluate_every", "data.eval")
        yield Clash(message, fields, {"train.evaluate_every": 0}, effect="or give data.eval=FILE")


def _adapter(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    adapter, method = recipe.model.adapter, "model.adapter.method"
    if isinstance(adapter, FreezeConfig) and not (adapter.first or adapter.last or adapter.names):
        message = "everything is frozen: first, last and names are empty"
        yield Clash(message, ("model.adapter.last", "model.adapter.first", method), {"model.adapter.last": 2})
    if recipe.model.adapter_path is not None and adapter.kept == "model":
        message = f"an adapter folder is given, but the method is {adapter.method}"
        yield Clash(message, ("model.adapter_path", method), {method: "lora"})
    if recipe.model.merged_adapters and recipe.online is not None and adapter.kept == "model":
        message = "rounds of whole models compare with the model as it is stored, and adapters are merged into it"
        yield Clash(message, (method, "model.merged_adapters"), {method: "lora"})
    if isinstance(adapter, TargetedConfig) and not adapter.targets and not adapter.modules_to_save:
        yield Clash("no module is adapted", ("model.adapter.targets", method), {"model.adapter.targets": ["all"]})
    if isinstance(adapter, RsloraConfig) and not adapter.rslora:
        yield Clash("the method is rslora, and rslora is off", ("model.adapter.rslora", method), {method: "lora"})


def _reports(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    names = recipe.run.report_to
    if "none" in names and len(names) > 1:
        others = [name for name in names if name != "none"]
        message = f"report_to says none and {', '.join(others)}"
        yield Clash(message, ("run.report_to.0",), {"run.report_to": others})


Rule = Callable[[Recipe, Mapping[str, Origin]], Iterator[Clash]]
RULES: tuple[Rule, ...] = (
    _step_size, _products, _length, _early_stopping, _evaluation, _adapter, prompts, rates, averages, drawn, cut_ranks,
    projected, _reports, company, in_backward, automatic_warmup, fresh_model, quantized_base, new_tokens,
    *GUARD_RULES, *OBJECTIVE_RULES,
)  # fmt: skip
