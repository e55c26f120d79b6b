"""Models by name, opened when they are wanted: a base and its adapters share its weights in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import ModelError, UsageError, Where, nearest
from tunesmith.export.opening import Dtype, ModelSource, Opened, Which, check_gives, find_model, open_source
from tunesmith.models.adapter_types import read_adapter_object
from tunesmith.models.adapters.several import Several, attach_several
from tunesmith.models.kinds import kind_of
from tunesmith.models.load import load_base
from tunesmith.models.quantized.files import TAKEN, packing_for


@dataclass(slots=True)
class Shelf:
    """The models of some names, all of which write text.

    Adapters of one base are loaded onto one copy of it, which is also that of the base by itself, and opening another
    of them switches; what was opened before is then this other one. Anything else is loaded each time it is opened.
    """

    sources: dict[str, ModelSource]
    dtype: Dtype = "auto"
    shared: dict[tuple[str, ...], Several | None] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Sequence[str], which: Which = "auto", dtype: Dtype = "auto") -> Shelf:
        shelf = cls({}, dtype)
        for name in names:
            shelf.add(name, which)
        return shelf

    def add(self, name: str, which: Which = "auto") -> None:
        """One model more; what others shared is loaded anew, so that it can join them."""
        source = find_model(name, which)
        check_gives(source, "text")
        self.sources[name] = source
        self.let_go()

    def remove(self, name: str) -> None:
        """One model less; those of its base are loaded anew, without it."""
        del self.sources[name]
        self.let_go()

    def let_go(self) -> None:
        """What is shared is loaded anew when it is wanted again."""
        self.shared.clear()

    def twice(self) -> tuple[str, str] | None:
        """Two names of the same weights, if there are any."""
        names: dict[tuple[Path | None, ...], str] = {}
        for name, source in self.sources.items():
            if names.setdefault(source.places, name) != name:
                return names[source.places], name
        return None

    def source(self, name: str) -> ModelSource:
        """Where the weights of this name are. Raises UsageError E368 for one that is not on the shelf."""
        if name not in self.sources:
            near = nearest(name, self.sources)
            fixes = [f"did you mean {near}?"] if near else []
            listed = f"there are: {', '.join(self.sources)}"
            raise UsageError("E368", f"there is no model {name!r}", where=Where(name), evidence=[listed], fixes=fixes)
        return self.sources[name]

    def open(self, name: str) -> Opened:
        """The model of this name, in evaluation mode."""
        source = self.source(name)
        several = self.several(source)
        if several is None:
            return open_source(source, self.dtype)
        tokenizer = load_tokenizer(source.base, source.settings.new_tokens)
        return Opened(self.activate(several, name), tokenizer, source)

    def activate(self, several: Several, name: str) -> nn.Module:
        return several.activate(name if self.sources[name].adapter is not None else None)

    def several(self, source: ModelSource) -> Several | None:
        """The base that a source shares with others of the shelf; None when it shares none."""
        key = base_key(source)
        companions = self.companions(source)
        if key is None or len(companions) < 2:
            return None
        if key not in self.shared:
            self.shared[key] = load_together(companions, self.dtype)
        return self.shared[key]

    def companions(self, source: ModelSource) -> dict[str, ModelSource]:
        """The sources that may share a base with this one, itself among them."""
        key = base_key(source)
        return {name: other for name, other in self.sources.items() if base_key(other) == key}


def base_key(source: ModelSource) -> tuple[str, ...] | None:
    """What two models must have in common to share one base; None for what needs a base of its own."""
    adapter = source.adapter
    if source.checkpoint is not None or (adapter is not None and (adapter / TAKEN).is_file()):
        return None
    settings = source.settings
    kept = "kept" if adapter is None or keeps_base(adapter) else "changed"
    kind = (str(source.base.resolve()), settings.dtype, settings.attention, settings.quantization.model_dump_json())
    return (*kind, kept, *settings.merged_adapters, "with", *settings.new_tokens)


def keeps_base(adapter: Path) -> bool:
    """Whether the base is what it was when the adapter is switched off, whatever its kind does to other weights."""
    found = read_adapter_object(adapter)
    return kind_of(found) in ("lora", "dora") and found.get("bias", "none") == "none"


def load_together(sources: dict[str, ModelSource], dtype: Dtype) -> Several | None:
    """All of them on one base, on the GPU when there is one; None for kinds that cannot stand together."""
    first = next(iter(sources.values()))
    settings = first.settings if dtype == "auto" else first.settings.model_copy(update={"dtype": dtype})
    base = load_base(first.base, settings, packing=packing_for(settings)).requires_grad_(False)
    try:
        several = attach_several(base.eval(), {name: one.adapter for name, one in sources.items() if one.adapter})
    except ModelError as error:
        if error.diagnostic.code != "E368":
            raise
        return None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    nn.Module.to(several.model, device)
    return several
