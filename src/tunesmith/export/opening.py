"""A run, an adapter folder or a model, given by name, becomes a module that can answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import nn

from tunesmith.configuring.reader import read_yaml
from tunesmith.contained import check_contained
from tunesmith.data.tokenizer import Tokenizer, load_tokenizer
from tunesmith.errors import BadInput, CheckpointError, Fix, ModelError, UsageError, Where
from tunesmith.models.adapters import Adapted, base_named_in, load_adapter, trainable
from tunesmith.models.config import ModelConfig
from tunesmith.models.fresh import locate_start
from tunesmith.models.headers import read_header
from tunesmith.models.heads import outputs_in, stored_outputs, writes_no_text
from tunesmith.models.inventory import ADAPTER_FILE
from tunesmith.models.load import load_base, load_model
from tunesmith.models.locate import FINAL, locate
from tunesmith.models.loftq_config import LoftqConfig
from tunesmith.models.meaning import Meaning, from_json, read_meaning
from tunesmith.models.quantized.files import base_of_folder, packing_for
from tunesmith.models.reference import AdapterOff, OtherModel, Reference
from tunesmith.models.rounded import rounded_from
from tunesmith.models.safety import ADAPTER_CONFIG, holds_model, read_config
from tunesmith.models.stack import Below, Stack, check_stack, read_stack
from tunesmith.track.index import find_run
from tunesmith.track.run_dir import RunDir, is_run
from tunesmith.train.checkpoint import Checkpoint, CheckpointStore
from tunesmith.vocabulary import read_new_tokens

Which = Literal["auto", "final", "best", "newest"] | int  # a number: the checkpoint of that step
Dtype = Literal["auto", "float32", "bfloat16"]
Wants = Literal["text", "values", "any"]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where weights are: a base folder, and on top of it an adapter folder, a checkpoint, or nothing."""

    base: Path
    settings: ModelConfig
    adapter: Path | None = None
    checkpoint: Checkpoint | None = None
    run: RunDir | None = None

    @property
    def outputs(self) -> int:
        """How many values the model gives; 0 for a language model."""
        if self.checkpoint is not None:
            found = outputs_in(read_header(self.checkpoint.folder / "weights.safetensors"))
        elif self.adapter is not None:
            found = outputs_in(read_header(self.adapter / ADAPTER_FILE))
        else:
            found = 0
        return found or stored_outputs(read_config(self.base)[0])

    @property
    def meaning(self) -> Meaning:
        """What the values of its head are."""
        if self.checkpoint is None:
            return read_meaning(self.adapter or self.base)
        task = self.run.read_run().get("task") if self.run else None
        return from_json(task) if isinstance(task, dict) else Meaning()

    @property
    def places(self) -> tuple[Path | None, ...]:
        """Where the weights are, whatever they were called."""
        found = (self.base, self.adapter, self.checkpoint.folder if self.checkpoint else None)
        return tuple(path and path.resolve() for path in found)

    @property
    def told(self) -> str:
        """What is loaded, in a few words."""
        if self.checkpoint is not None:
            return f"step {self.checkpoint.step} of {self.run.id if self.run else '?'}"
        if self.run is not None:
            return f"{self.run.id} (final weights)"
        return str(self.adapter or self.base)


@dataclass(frozen=True, slots=True)
class Opened:
    """A model in evaluation mode without gradients, its tokenizer, and where both came from."""

    model: nn.Module
    tokenizer: Tokenizer
    source: ModelSource


def open_model(name: str, *, which: Which = "auto", dtype: Dtype = "auto", wants: Wants = "text") -> Opened:
    """Load what `name` means, on the GPU when there is one; `which` chooses among the weights of a run."""
    return open_source(find_model(name, which), dtype, wants)


def open_source(source: ModelSource, dtype: Dtype = "auto", wants: Wants = "text") -> Opened:
    """Load the weights of a source, on the GPU when there is one.

    ModelError E242 for a reward model or classifier where text is wanted, E245 for a language model where values are.
    """
    check_gives(source, wants)
    model = load_source(source, dtype)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Opened(model.to(device), load_tokenizer(source.base, source.settings.new_tokens), source)


def check_gives(source: ModelSource, wants: Wants) -> None:
    """E242 or E245 when the model gives something else than what is wanted; nothing is loaded."""
    if wants == "text" and source.outputs:
        raise writes_no_text(str(source.run.path if source.run else source.adapter or source.base))
    if wants == "values" and not source.outputs:
        raise gives_no_values(source)


def gives_no_values(source: ModelSource) -> ModelError:
    return ModelError(
        "E245",
        f"{source.told} is a language model: it has no head that gives rewards or classes",
        where=Where(str(source.adapter or source.base)),
        fixes=[
            Fix(
                "train a reward model from it",
                command=f"tunesmith train reward model.path={source.base} data.train=FILE",
            ),
            "name a reward model or a classifier",
        ],
    )


def reference_of(opened: Opened) -> Reference | None:
    """What the training of this model was compared with: the base below its adapter, or the model it began as.

    None for a model that is no run's and has no adapter: nothing says what it was.
    """
    source, settings = opened.source, opened.source.settings
    named, start = settings.reference.path, settings.adapter_path
    begins_there = start is None and not isinstance(settings.adapter, LoftqConfig)
    base_alone = begins_there or settings.reference.source == "adapter_off"
    if isinstance(opened.model, Adapted) and named is None and base_alone:
        return AdapterOff(opened.model)
    if source.run is None:
        return None
    device = next(opened.model.parameters()).device
    return OtherModel(load_start(source.run, settings).to(device))


def load_start(run: RunDir, settings: ModelConfig) -> nn.Module:
    """The reference that the recipe names, or the model that the run began as."""
    named, start = settings.reference.path, settings.adapter_path
    folder = base_folder(run, settings) if named is None else locate(named)
    below = model_settings(run).merged_adapters if named is None else ()
    tokens = settings.new_tokens if named is None else ()
    own = {"merged_adapters": below, "new_tokens": tokens, "new_tokens_begin": settings.new_tokens_begin}
    plain = reference_settings(settings, folder).model_copy(update=own)
    if named is None and start is None and isinstance(settings.adapter, LoftqConfig):
        return load_model(folder, settings).requires_grad_(False).eval()
    continued = None if named is not None or start is None else locate(start)
    base = load_base(folder, plain, packing=packing_for(plain, continued))
    model = base if continued is None else load_adapter(base, continued)
    return model.requires_grad_(False).eval()


def reference_settings(settings: ModelConfig, folder: Path) -> ModelConfig:
    """How a frozen model to compare with is loaded: as the base of the run is."""
    kept = {"dtype": settings.dtype, "attention": settings.attention, "quantization": settings.quantization}
    return ModelConfig(path=str(folder)).model_copy(update=kept)


def named_run(name: str) -> RunDir | None:
    """The run that a path, an id, the beginning of one, or `last` means; None when it means something else."""
    if not is_run(Path(name).expanduser()) and ("/" in name or Path(name).exists() or name == "starter"):
        return None
    try:
        return find_run(Path(name).expanduser() if is_run(Path(name).expanduser()) else name)
    except UsageError:
        return None


def find_model(name: str, which: Which = "auto") -> ModelSource:
    """A run directory (or its name under runs/), a PEFT folder, a model folder, a .gguf file, `starter` or a hub id."""
    run = named_run(name)
    if run is not None:
        return find_weights(run, which)
    folder = locate(name)
    if (folder / ADAPTER_CONFIG).is_file() and not holds_model(folder):
        base = base_named_in(folder)
        if not base:
            raise BadInput(
                "E154",
                "the adapter does not say which model it was trained from",
                where=Where(str(folder / "adapter_config.json"), field="base_model_name_or_path"),
                fixes=["write the base model's folder or hub id there"],
            )
        below = check_stack(read_stack(folder), folder)
        packed = base_of_folder(folder).model_dump()
        found = {"path": base, "quantization": packed, "merged_adapters": below}
        settings = ModelConfig.model_validate({**found, **tokens_of(folder, locate(base))})
        return ModelSource(locate(base), settings, adapter=folder)
    return ModelSource(folder, ModelConfig(path=name if rounded_from(folder) else str(folder)))


def tokens_of(folder: Path, base: Path) -> dict[str, Any]:
    """Settings for the tokens that an adapter was trained with and its base lacks."""
    new, known = read_new_tokens(folder), read_new_tokens(base).tokens
    tokens = [token for token in new.tokens if token not in known]
    return {"new_tokens": tokens, "new_tokens_begin": new.begin}


def find_weights(run: RunDir, which: Which) -> ModelSource:
    """`auto` is the final weights, or the newest valid checkpoint of a run that has not finished."""
    settings = model_settings(run)
    if which in ("auto", "final"):
        for name in FINAL:
            check_contained(run.path / name)
        if (run.path / "adapter" / "adapter_config.json").is_file():
            check_stack(recorded_stack(run), run.path)
            return ModelSource(base_folder(run, settings), settings, adapter=run.path / "adapter", run=run)
        if (run.path / "model" / "config.json").is_file():
            whole = settings.model_copy(update={"merged_adapters": (), "new_tokens": ()})  # they are in it
            return ModelSource(run.path / "model", whole, run=run)
    check_stack(recorded_stack(run), run.path)
    store = CheckpointStore(run.checkpoints)
    if isinstance(which, int):
        return ModelSource(base_folder(run, settings), settings, checkpoint=checkpoint_at(run, store, which), run=run)
    found = {"auto": store.newest, "newest": store.newest, "best": store.best, "final": lambda: None}[which]()
    if found is None:
        what = {"best": "checkpoint marked as the best", "final": "final weights"}.get(which, "weights yet")
        raise CheckpointError(
            "E155",
            f"the run {run.id} has no {what}",
            where=Where(str(run.path)),
            fixes=[Fix("let it train on", command=f"tunesmith runs resume {run.path}")],
        )
    return ModelSource(base_folder(run, settings), settings, checkpoint=found, run=run)


def checkpoint_at(run: RunDir, store: CheckpointStore, step: int) -> Checkpoint:
    """The checkpoint of a step; CheckpointError E155 where there is none, E111 for a damaged one."""
    steps = store.steps()
    if step in steps:
        return store.at(step)
    fixes = [Fix(f"--weights step-{steps[0]}")] if steps else []
    raise CheckpointError(
        "E155",
        f"the run {run.id} keeps no checkpoint of step {step}",
        where=Where(str(run.checkpoints)),
        evidence=[f"it keeps: {', '.join(map(str, steps))}"] if steps else [],
        fixes=[*fixes, "keep more next time: train.checkpoint.keep"],
    )


def model_settings(run: RunDir) -> ModelConfig:
    """The `model` part of the run's resolved recipe."""
    try:
        recipe = read_yaml(run.read_config(), str(run.config_file)).value
        return ModelConfig.model_validate(recipe["model"])
    except (UsageError, ValidationError, KeyError, TypeError) as error:
        where = Where(str(run.config_file), field="model")
        told = " ".join(str(error).split())[:300]
        raise BadInput("E193", "config.yaml of the run cannot be read", where=where, evidence=[told]) from error


def recorded_stack(run: RunDir) -> Stack:
    """The adapters merged into the base of a run, and what they held when it began."""
    listed = run.read_run().get("merged_adapters") or []
    return tuple(Below(each["folder"], each["hash"]) for each in listed)


def base_folder(run: RunDir, settings: ModelConfig) -> Path:
    """The folder that the run was trained from; looked for by its name, or drawn, again when it has moved."""
    about: Any = run.read_run().get("model")
    folder = Path(about["folder"]) if isinstance(about, dict) and about.get("folder") else None
    if folder is not None and (folder / "config.json").is_file():
        check_contained(folder)
        return folder
    return locate_start(settings, 0)  # the recipe of a run says the seed


def load_source(source: ModelSource, dtype: Dtype = "auto") -> nn.Module:
    """The module on the CPU with adapter or checkpoint in place, in evaluation mode, nothing trainable."""
    plain = {"dtype": source.settings.dtype if dtype == "auto" else dtype}
    settings = source.settings.model_copy(update=plain)
    if source.checkpoint is not None:
        model = load_model(source.base, settings, outputs=source.outputs)
        put_weights(model, source.checkpoint)
    else:
        packing = packing_for(settings, source.adapter)
        base = load_base(source.base, settings, outputs=source.outputs, packing=packing)
        model = base if source.adapter is None else load_adapter(base, source.adapter)
    return model.requires_grad_(False).eval()


def put_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the trained tensors of a checkpoint into a model that is still to be trained."""
    put_tensors(trainable(model), checkpoint)


@torch.no_grad()
def put_tensors(places: Mapping[str, nn.Parameter], checkpoint: Checkpoint) -> None:
    """Copy the trained tensors of a checkpoint; every name must have its place and the other way round."""
    weights = checkpoint.tensors("weights")
    if weights.keys() != places.keys():
        odd = sorted(weights.keys() ^ places.keys())
        raise CheckpointError(
            "E155",
            f"the checkpoint does not fit the model of its recipe: {len(odd)} tensors differ",
            where=Where(str(checkpoint.folder)),
            evidence=odd[:10],
        )
    for name, parameter in places.items():
        parameter.copy_(weights[name])
