"""What a new model cannot be, and what does not go with one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tunesmith.configuring.layers import DEFAULT, RANK, Origin
from tunesmith.models.adapter_config import FullConfig
from tunesmith.models.fresh_config import ARCHITECTURES, Architecture, FreshConfig
from tunesmith.models.quantization_config import Unquantized
from tunesmith.recipe.clash import Clash
from tunesmith.recipe.settings import Recipe

FRESH, METHOD, OBJECTIVE = "model.fresh", "model.adapter.method", "objective.name"
LAYERS = f"{FRESH}.layers"
NORMS, QK_NORM, ARCHITECTURE = f"{FRESH}.norms", f"{FRESH}.qk_norm", f"{FRESH}.architecture"
HEADS, KV_HEADS, HEAD_DIM = f"{FRESH}.heads", f"{FRESH}.kv_heads", f"{FRESH}.head_dim"
EMBEDDING, TIED = f"{FRESH}.embedding", f"{FRESH}.tied_embeddings"
STANDING = {"pre": "before", "sandwich": "before and behind", "post": "behind"}


def fresh_model(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    fresh = recipe.model.fresh
    if fresh is None:
        return
    yield from _unknown(fresh, origins)
    yield from _sizes(fresh)
    yield from _tied(fresh)
    yield from _tuning(recipe)
    yield from _objective(recipe)
    yield from _another_start(recipe)


def _unknown(fresh: FreshConfig, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """E390: norms that no architecture has, or not the one that is named."""
    if fresh.found is not None:
        return
    nearest = _nearest(fresh, origins)
    wanted = [] if fresh.norms == "auto" else [f"norms {STANDING[fresh.norms]} the halves of a layer"]
    wanted += [] if fresh.qk_norm is None else [f"queries and keys {'with' if fresh.qk_norm else 'without'} norms"]
    set_to: dict[str, Any] = {} if fresh.architecture in ("auto", nearest.word) else {ARCHITECTURE: nearest.word}
    has_norms, has_qk_norm = fresh.agreement(nearest)
    set_to |= {} if has_norms else {NORMS: nearest.norms}
    set_to |= {} if has_qk_norm else {QK_NORM: nearest.qk_norm}
    who = "no architecture has" if fresh.architecture == "auto" else f"{fresh.architecture} does not have"
    message = f"{who} {' and '.join(wanted)}"
    yield Clash(message, (NORMS, QK_NORM, ARCHITECTURE), set_to, "E390", f"the nearest there is: {nearest.word}")


def _nearest(fresh: FreshConfig, origins: Mapping[str, Origin]) -> Architecture:
    """What is said of norms decides, unless the architecture is named later, as on the command line above a file."""
    named, *others = (RANK[origins.get(field, DEFAULT).kind] for field in (ARCHITECTURE, NORMS, QK_NORM))
    last = next((each for each in ARCHITECTURES if each.word == fresh.architecture), None)
    return fresh.nearest if last is None or named <= max(others) else last


def _sizes(fresh: FreshConfig) -> Iterator[Clash]:
    """E391: sizes that do not go into one another."""
    if fresh.head_dim is None and fresh.hidden % fresh.heads:
        message = f"a hidden size of {fresh.hidden} is not shared out evenly among {fresh.heads} heads"
        yield Clash(message, (HEADS, f"{FRESH}.hidden"), {HEADS: divisor(fresh.hidden, fresh.heads)}, "E391")
    elif fresh.width % 2:
        message = f"heads are {fresh.width} wide, and rotary positions turn pairs of numbers"
        yield Clash(message, (HEAD_DIM, HEADS), {HEAD_DIM: fresh.width + 1}, "E391")
    if fresh.heads % fresh.key_heads:
        message = f"{fresh.heads} heads cannot share {fresh.key_heads} heads of keys and values evenly"
        yield Clash(message, (KV_HEADS, HEADS), {KV_HEADS: divisor(fresh.heads, fresh.key_heads)}, "E391")


def divisor(whole: int, most: int) -> int:
    """The largest number up to `most` that divides `whole`."""
    return next(size for size in range(min(whole, most), 0, -1) if whole % size == 0)


def _tied(fresh: FreshConfig) -> Iterator[Clash]:
    """E395: a head of large embeddings is sure, before anything is learned, that the same token comes again."""
    if fresh.tied_embeddings and fresh.embedding == "unit":
        message = "embeddings that give the residual stream a variance of 1 are too large for a head of the same matrix"
        yield Clash(message, (TIED, EMBEDDING), {TIED: False}, "E395", f"or {EMBEDDING}=plain")


def _tuning(recipe: Recipe) -> Iterator[Clash]:
    """E392: random weights are not worth keeping as they are."""
    adapter = recipe.model.adapter
    if type(adapter) is not FullConfig:  # LISA is one, of a few layers at a time
        message = f"{adapter.title} leaves weights as they are, and those of a new model are random"
        yield Clash(message, (METHOD, LAYERS), {"model.adapter": "full"}, "E392")


def _objective(recipe: Recipe) -> Iterator[Clash]:
    """E393: what a new model can learn first, and what a comparison with it would mean."""
    if recipe.task.reads != "logprobs" or recipe.task.kind != "sequence":
        message = f"{recipe.objective.title} judges answers, and a new model writes none: it learns from texts first"
        yield Clash(message, (OBJECTIVE, LAYERS), {"objective": "sft"}, "E393")
    elif recipe.has_reference or recipe.compares_distributions:
        message = "the reference would be the model as it begins, which is random"
        yield Clash(message, (OBJECTIVE, LAYERS), {"also": []}, "E393")
    if recipe.online is not None:
        message = "the model would learn from its own answers, and a new model writes none"
        yield Clash(message, ("online.rounds", LAYERS), {"online": None}, "E393")


def _another_start(recipe: Recipe) -> Iterator[Clash]:
    """E394: settings that are about weights which are there already."""
    model, none = recipe.model, type(recipe.model).model_fields
    about: list[tuple[str, bool, Any]] = [
        ("path", model.path != none["path"].default, "starter"),
        ("revision", model.revision is not None, None),
        ("adapter_path", model.adapter_path is not None, None),
        ("merged_adapters", bool(model.merged_adapters), []),
        ("new_tokens", bool(model.new_tokens), []),
        ("base_products", model.base_products != "exact", "exact"),
        ("quantization", not isinstance(model.quantization, Unquantized), "none"),
    ]
    for name, is_said, empty in about:
        field = f"model.{name}"
        shown = {"merged_adapters": f"{field}.0", "new_tokens": f"{field}.0", "quantization": f"{field}.name"}
        if is_said:
            message = f"a new model is described, and {field} is about one that has weights already"
            effect = f"or {FRESH}=; the tokenizer is {FRESH}.tokenizer" if name == "path" else f"or {FRESH}="
            yield Clash(message, (shown.get(name, field), LAYERS), {field: empty}, "E394", effect)
