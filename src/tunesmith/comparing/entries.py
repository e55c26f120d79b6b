"""Which methods are compared: a name, and what each sets in the recipe."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tunesmith.configuring.reader import read_file
from tunesmith.errors import Fix, UsageError, Where, nearest
from tunesmith.models.adapters import METHODS

LR = "train.optimizer.lr"
BESIDE: dict[str, tuple[str, ...]] = {  # what a user calls a method and is an adapter with something beside it
    "lora+": ("model.adapter=lora", "train.optimizer.lr_ratio_b=16"),
    "qlora": ("model.adapter=lora", "model.quantization=nf4"),
    "galore": ("model.adapter=full", "train.optimizer=galore"),
}
USUAL = (
    "lora",
    "lora+",
    "rslora",
    "dora",
    "pissa",
    "olora",
    "lora_fa",
    "vera",
    "ia3",
    "oft",
    "norms",
    "freeze",
    "full",
    "galore",
    "bottleneck",
    "prompt",
    "prefix",
    "qlora",
)
SETTINGS = {  # without which a method trains nothing, or has nothing to begin with
    "freeze": ("model.adapter.last=4",),
    "loftq": ("model.quantization=nf4",),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One method: how it is called, and the settings that make it."""

    name: str
    settings: tuple[str, ...]

    @property
    def slug(self) -> str:
        """The name of its run."""
        return re.sub(r"[^A-Za-z0-9]+", "-", self.name.replace("+", "-plus")).strip("-").lower()

    @property
    def sets_rate(self) -> bool:
        return any(word.startswith(f"{LR}=") for word in self.settings)


def named(names: tuple[str, ...]) -> tuple[Entry, ...]:
    """The methods of these names; UsageError E400 for one that is none."""
    return tuple(Entry(name, settings_of(name)) for name in names)


def settings_of(name: str) -> tuple[str, ...]:
    words = {method.config.model_fields["method"].default for method in METHODS}
    if name in words:
        return (f"model.adapter={name}", *SETTINGS.get(name, ()))
    if name in BESIDE:
        return BESIDE[name]
    known = sorted(words | BESIDE.keys())
    near = nearest(name, known)
    raise UsageError(
        "E400",
        f"no method is called {name!r}",
        where=Where("--methods"),
        evidence=[f"methods: {', '.join(known)}"],
        fixes=[Fix(f"--methods {near or 'lora,dora,full'}"), "write other settings into a file: --list FILE"],
    )


def listed(path: Path) -> tuple[Entry, ...]:
    """The methods of a YAML file, each a `name` and settings under `set`; UsageError E401 for another form."""
    found = read_file(path).value or {}
    methods = found.get("methods")
    if not isinstance(methods, list) or not methods:
        raise bad_list(path, "it has no list `methods`")
    entries = tuple(entry_of(path, one) for one in methods)
    twice = {entry.slug for entry in entries if [other.slug for other in entries].count(entry.slug) > 1}
    if twice:
        raise bad_list(path, f"two methods have the name {min(twice)}")
    return entries


def entry_of(path: Path, value: object) -> Entry:
    if not isinstance(value, dict) or set(value) != {"name", "set"}:
        raise bad_list(path, "a method has `name` and `set`, and nothing else")
    name, settings = value["name"], value["set"]
    if not isinstance(name, str) or not isinstance(settings, list) or not all(isinstance(x, str) for x in settings):
        raise bad_list(path, "`name` is a word, and `set` a list of KEY=VALUE")
    return Entry(name, tuple(settings))


def bad_list(path: Path, message: str) -> UsageError:
    example = "methods: [{name: DoRA, set: [model.adapter=dora, model.adapter.rank=8]}]"
    return UsageError("E401", message, where=Where(str(path)), fixes=[f"for example {example}"])
