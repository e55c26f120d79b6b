"""Named adapters on one base in memory, of which one is at work at a time; changing it moves no number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import peft
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import Fix, ModelError, UsageError, Where, nearest
from tunesmith.models.adapters.base import use_fast_linear
from tunesmith.models.adapters.files import fill, load_adapter, read_adapter_config
from tunesmith.models.butterfly import put_butterflies
from tunesmith.models.kinds import NO_WEIGHTS, kind_of_folder
from tunesmith.models.new_rows import has_rows
from tunesmith.models.trained_on import check_base


@dataclass(frozen=True, slots=True)
class Several:
    """`places` are PEFT's names by ours; without adapters `model` is the base itself."""

    model: PeftModel | PreTrainedModel
    places: dict[str, str]

    def activate(self, name: str | None) -> nn.Module:
        """Let the adapter called `name` work, None the base alone; everything stays frozen.

        Raises UsageError E368 for a name that is not there.
        """
        if name is not None and name not in self.places:
            near = nearest(name, self.places)
            raise UsageError(
                "E368",
                f"there is no adapter {name!r}",
                evidence=[f"there are: {', '.join(self.places) or 'none'}"],
                fixes=[f"did you mean {near}?"] if near else [],
            )
        if isinstance(self.model, PeftModel):
            if name is None:
                self.model.base_model.disable_adapter_layers()  # pyright: ignore[reportCallIssue]
            else:
                self.model.base_model.enable_adapter_layers()  # pyright: ignore[reportCallIssue]
                self.model.set_adapter(self.places[name])
        return self.model.requires_grad_(False)


def attach_several(model: PreTrainedModel, folders: Mapping[str, Path]) -> Several:
    """Load every folder beside the others; none trains, and the first is at work.

    Raises ModelError E368 for adapters of kinds that cannot stand beside one another, E092 for one that does not fit.
    """
    if not folders:
        return Several(model.requires_grad_(False), {})
    for name, folder in folders.items():
        if (kind := kind_of_folder(folder)) in NO_WEIGHTS:
            raise no_company(name, f"{kind} changes what layers see or what comes out of them, not weights")
    configs = {name: read_adapter_config(folder) for name, folder in folders.items()}
    check_kinds({name: str(config.peft_type) for name, config in configs.items()})
    for name, config in configs.items():
        if has_rows(config):
            raise no_company(name, "it has tokens of its own")
    if model.name_or_path:
        for folder in folders.values():
            check_base(folder, Path(model.name_or_path))
    first, *others = folders
    wrapped = load_adapter(model, folders[first])
    assert isinstance(wrapped, PeftModel), "what is not PEFT's was refused above"
    wrapped.peft_config["default"].inference_mode = True  # none is trained here: some kinds let only one be
    places = {first: "default"}
    for number, name in enumerate(others):
        config, places[name] = configs[name], f"adapter_{number}"
        config.base_model_name_or_path, base = None, config.base_model_name_or_path
        config.inference_mode = True
        use_fast_linear(config)
        if isinstance(config, peft.BOFTConfig):
            put_butterflies(wrapped.get_base_model(), config)
        try:
            wrapped.add_adapter(places[name], config)
        except ValueError as error:  # what PEFT's kinds say of companions: other seeds, biases
            raise no_company(name, str(error)) from error
        fill(wrapped, folders[name], str(base), places[name])
    several = Several(wrapped.eval(), places)
    several.activate(first)
    return several


def check_kinds(kinds: Mapping[str, str]) -> None:
    first = next(iter(kinds.values()))
    for name, kind in kinds.items():
        if kind != first:
            raise no_company(name, f"it is of {kind.rpartition('.')[2]}, the first is of {first.rpartition('.')[2]}")


def no_company(name: str, why: str) -> ModelError:
    return ModelError(
        "E368",
        f"the adapter {name} cannot stand beside the others: {why}",
        where=Where(name),
        fixes=[
            Fix("make it LoRA, as the others", command=f"tunesmith adapters convert {name} OUT --to lora"),
            "load it on a base of its own",
        ],
    )
