"""Models by name, opened when they are wanted: adapters of one base share it in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import ModelError, UsageError, Where, nearest
from tunesmith.export.opening import ModelSource, Opened, Which, check_gives, find_model, open_source
from tunesmith.models.adapters.several import Several, attach_several
from tunesmith.models.load import load_base
from tunesmith.models.quantized.files import TAKEN


@dataclass(slots=True)
class Shelf:
    """The models of some names, all of which write text.

    Adapters of one base are loaded onto one copy of it, and opening another of them switches; what was opened before
    is then this other one. Anything else is loaded when it is opened, each time.
    """

    sources: dict[str, ModelSource]
    shared: dict[tuple[str, ...], Several | None] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Sequence[str], which: Which = "auto") -> Shelf:
        shelf = cls({})
        for name in names:
            shelf.add(name, which)
        return shelf

    def add(self, name: str, which: Which = "auto") -> None:
        """One model more; what others shared is loaded anew, so that it can join them."""
        source = find_model(name, which)
        check_gives(source, "text")
        self.sources[name] = source
        self.shared.clear()

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
            return open_source(source)
        return Opened(several.activate(name), load_tokenizer(source.base, source.settings.new_tokens), source)

    def several(self, source: ModelSource) -> Several | None:
        """The base that the adapter of a source shares with others of the shelf; None when it shares none."""
        key = base_key(source)
        companions = {name: other for name, other in self.sources.items() if base_key(other) == key}
        if key is None or len(companions) < 2:
            return None
        if key not in self.shared:
            self.shared[key] = load_together(companions)
        return self.shared[key]


def base_key(source: ModelSource) -> tuple[str, ...] | None:
    """What two adapters must have in common to stand on one base; None for what needs a base of its own."""
    if source.adapter is None or source.checkpoint is not None or (source.adapter / TAKEN).is_file():
        return None
    settings = source.settings
    kind = (str(source.base.resolve()), settings.dtype, settings.attention, settings.quantization.model_dump_json())
    return (*kind, *settings.merged_adapters, "with", *settings.new_tokens)


def load_together(sources: dict[str, ModelSource]) -> Several | None:
    """All adapters on one base, on the GPU when there is one; None for kinds that cannot stand together."""
    first = next(iter(sources.values()))
    base = load_base(first.base, first.settings).requires_grad_(False)
    try:
        several = attach_several(base, {name: one.adapter for name, one in sources.items() if one.adapter})
    except ModelError as error:
        if error.diagnostic.code != "E368":
            raise
        return None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    nn.Module.to(several.model, device)
    return several
