"""What a plan finds wrong or doubtful with a folder to go on from, told from its settings and headers alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.configuring.catalogue import plain
from tunesmith.errors import Diagnostic, Fix, Where
from tunesmith.models.adapter_folder import misfits
from tunesmith.models.adapter_types import read_adapter_object
from tunesmith.models.headers import read_header
from tunesmith.models.inventory import ADAPTER_FILE, Inventory
from tunesmith.models.kinds import kind_of_folder, kind_wanted
from tunesmith.models.locate import locate
from tunesmith.models.prompt_config import LearnedConfig, PrefixConfig
from tunesmith.recipe import Recipe

METHOD, PATH = "model.adapter.method", "model.adapter_path"
STORED = {  # settings of a recipe, and what a folder calls them
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "rslora": "use_rslora",
    "tokens": "num_virtual_tokens",
    "block": "oft_block_size",
    "factors": "boft_n_butterfly_factor",
}
OWN = {("boft", "block"): "boft_block_size", ("adalora", "rank"): "target_r", ("vera", "dropout"): "vera_dropout"}


def continuing_problems(recipe: Recipe, inventory: Inventory, path: str) -> Iterator[Diagnostic]:
    """Errors that would stop the run when the folder is loaded, and settings that it decides."""
    folder = locate(path)
    wanted, found = kind_wanted(recipe.model.adapter), kind_of_folder(folder)
    if found is None:
        return
    if wanted != found:
        yield _another_kind(recipe, folder, found)
        return
    yield from _another_model(recipe, inventory, folder)
    yield from _other_settings(recipe, folder)
    yield from _changed_head(recipe, folder)


def _another_kind(recipe: Recipe, folder: Path, found: str) -> Diagnostic:
    """E313: the folder to go on from holds the adapter of another method."""
    return Diagnostic(
        "E313",
        f"the method is {recipe.model.adapter.word}, and the folder to go on from holds an adapter of {found}",
        where=Where(field=PATH),
        evidence=(str(folder),),
        fixes=(
            Fix(f"{METHOD}={found}", {METHOD: found}),
            Fix(f"{PATH}=", {PATH: None}, effect="begins a new adapter"),
        ),
    )


def _another_model(recipe: Recipe, inventory: Inventory, folder: Path) -> Iterator[Diagnostic]:
    """E092: the folder's tensors have no place in this model."""
    held, adapter = read_header(folder / ADAPTER_FILE), recipe.model.adapter
    reasons = list(misfits(held, inventory.tensors))
    if isinstance(adapter, LearnedConfig):
        width = 2 * inventory.layers * inventory.key if isinstance(adapter, PrefixConfig) else inventory.hidden
        shapes = [info.shape for name, info in held.items() if name.endswith(("prompt_embeddings", "adaption_prompt"))]
        reasons = [
            f"its tokens are {shape[-1]:,} numbers wide, not {width:,}" for shape in shapes if shape[-1] != width
        ]
    if not reasons:
        return
    base = read_adapter_object(folder).get("base_model_name_or_path")
    trained = [Fix(f"model.path={base}", {"model.path": base})] if isinstance(base, str) and base else []
    yield Diagnostic(
        "E092",
        f"the adapter to go on from does not fit the model: {reasons[0]}",
        where=Where(field=PATH),
        evidence=(str(folder), f"so it is with {len(reasons)} of its parts"),
        fixes=(*trained, Fix(f"{PATH}=", {PATH: None}, effect="begins a new adapter")),
    )


def _other_settings(recipe: Recipe, folder: Path) -> Iterator[Diagnostic]:
    """W313: settings that are neither the usual ones nor those of the folder, which decides."""
    stored, adapter = read_adapter_object(folder), recipe.model.adapter
    given, fields = adapter.model_dump(), type(adapter).model_fields
    changes: dict[str, Any] = {}
    for name, key in STORED.items():
        held = stored.get(OWN.get((adapter.word, name), key))
        if name in given and held is not None and given[name] not in (held, fields[name].default):
            changes[f"model.adapter.{name}"] = held
    if not changes:
        return
    told = ", ".join(f"{key.rpartition('.')[2]} {plain(given[key.rpartition('.')[2]])}" for key in changes)
    words = " ".join(f"{key}={plain(value)}" for key, value in changes.items())
    yield Diagnostic(
        "W313",
        f"the folder to go on from decides what the adapter is: {told} of the recipe is not used",
        "warning",
        Where(field=next(iter(changes))),
        (str(folder),),
        (Fix(words, changes, effect="what the folder holds"), Fix(f"{PATH}=", {PATH: None}, effect="a new adapter")),
    )


def _changed_head(recipe: Recipe, folder: Path) -> Iterator[Diagnostic]:
    """E387: an adapter on the head, whose start cannot be held beside the trained one."""
    if not recipe.compares_distributions or recipe.model.reference.source == "adapter_off":
        return
    if any(".lm_head.lora_" in name for name in read_header(folder / ADAPTER_FILE)):
        key = "model.reference.source"
        message = "the folder to go on from adapts the head, whose start kl_to_reference cannot hold beside the trained"
        fix = Fix(f"{key}=adapter_off", {key: "adapter_off"})
        yield Diagnostic("E387", message, where=Where(field=key), evidence=(str(folder),), fixes=(fix,))
