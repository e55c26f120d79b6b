"""A trained run becomes one ordinary model folder, written only when its predictions are proven equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.configuring.reader import read_yaml
from tunesmith.data.chat import encode
from tunesmith.data.config import DataConfig, SourceConfig
from tunesmith.data.entries import read_entries
from tunesmith.data.tally import Tally
from tunesmith.data.tokenizer import Tokenizer, load_tokenizer
from tunesmith.errors import Fix, ModelError, TunesmithError, UsageError, Where
from tunesmith.export.card import model_card
from tunesmith.export.opening import ModelSource, Which, find_model, load_source
from tunesmith.export.proof import NEXT_TOKENS, VALUES, Proof
from tunesmith.export.staging import staged
from tunesmith.models.adapter_folder import adapter_folder
from tunesmith.models.adapters import Adapted, merge
from tunesmith.models.adapters.merging import all_in_full
from tunesmith.models.config import ModelConfig
from tunesmith.models.forward import base_model
from tunesmith.models.headers import read_headers
from tunesmith.models.heads import has_head, head_modules
from tunesmith.models.load import load_base, resolve_dtype
from tunesmith.models.safety import read_config
from tunesmith.models.save import copy_tokenizer, save_head
from tunesmith.models.stack import above_others, find_stack, locate_adapter, read_stack
from tunesmith.types import Message, Task

PRECISE_BYTES = 16 * 2**30  # largest fp32 model that is formed and compared in fp32
SHARD = "50GB"  # largest weight file, unless another size is asked for
CHECK_TOKENS = 64  # tokens of each prompt that are compared: bounds the predictions held in memory
CHECKED = (
    "What is the capital of France, and what is it known for?",
    "Write two sentences about the sea.",
    "A train leaves at 9:40 and arrives at 12:05. How long does it take?",
    "Name three colours.",
)


@dataclass(frozen=True, slots=True)
class MergeReport:
    """`difference` is that of `positions` predictions (or scores) in `unit`, `limit` the largest allowed.

    `share` is that of the tuned weights where only a part of the way was gone, `averaged` what a mean was taken of.
    """

    folder: str
    base: str
    dtype: str
    bytes: int
    difference: float
    limit: float
    positions: int
    unit: str = NEXT_TOKENS.unit
    share: float = 1.0
    averaged: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Merging:
    """A model on its way to the folder `out`: what its predictions are compared on, how it is computed and written."""

    found: ModelSource
    out: Path
    proof: Proof
    rows: list[list[int]]
    computed: torch.dtype
    written: torch.dtype

    @classmethod
    def of(cls, found: ModelSource, out: Path) -> Merging:
        written = resolve_dtype(found.settings.dtype, read_config(found.base)[0])
        proof = VALUES if found.outputs else NEXT_TOKENS
        rows = check_rows(found, load_tokenizer(found.base, found.settings.new_tokens))
        return cls(found, out, proof, rows, computing_dtype(found.base, written), written)

    @property
    def word(self) -> Literal["float32", "bfloat16"]:
        return "float32" if self.computed == torch.float32 else "bfloat16"

    def predict(self, model: nn.Module) -> Tensor:
        return self.proof.predict(model.eval(), self.rows)

    def check(self, wanted: Tensor, model: nn.Module, dtype: torch.dtype) -> float:
        """The difference in predictions. Raises ModelError E156 when rounding to `dtype` does not explain it."""
        difference, limit = self.proof.differ(wanted, self.predict(model)), self.proof.limits[self.computed, dtype]
        if not difference <= limit:
            raise not_alike(self.proof, difference, limit, len(wanted), self.out, dtype)
        return difference

    def merged(self, source: ModelSource) -> tuple[PreTrainedModel, Tensor]:
        """The plain model of a source, proven in the computing type, and what its adapter predicts."""
        model = load_source(source, self.word)
        wanted = self.predict(model)
        merged = merge_finite(model)
        self.check(wanted, merged, self.computed)
        return merged, wanted

    def write(self, merged: PreTrainedModel, wanted: Tensor, stage: Path) -> MergeReport:
        """Write everything but the card to `stage`, read it back, compare; the model is rounded on the way."""
        save_merged(merged, self.written, stage, self.found)
        settings = ModelConfig(path=str(stage), dtype=self.word)
        difference = self.check(wanted, load_base(stage, settings, outputs=self.found.outputs), self.written)
        size = sum(path.stat().st_size for path in stage.glob("*.safetensors"))
        limit, count, unit = self.proof.limits[self.computed, self.written], len(wanted), self.proof.unit
        base = str(self.found.base)
        return MergeReport(str(self.out), base, name_of(self.written), size, difference, limit, count, unit)


def merge_run(source: str | Path, out: Path, *, which: Which = "auto") -> MergeReport:
    """Write the run's (or PEFT folder's) weights, merged into the base, to the new folder `out`.

    W + s BA is formed in fp32 and cast once. The folder is read back and its predictions on a few prompts compared with
    the adapter's. ModelError E095 (not finite) and E156 (predictions differ) leave nothing behind.
    """
    found = find_model(str(source), which)
    if found.run is None and found.adapter is None:
        raise UsageError("E157", f"{source} is a whole model already: nothing to merge", where=Where(str(source)))
    with staged(out, "the merged model") as stage:
        merging = Merging.of(found, out)
        report = merging.write(*merging.merged(found), stage)
        write_card(found, stage, report)
    return report


def merge_chain(adapters: Sequence[str], model: str, out: Path) -> MergeReport:
    """Merge adapters into a whole model one after another, each proven by its predictions above those before it."""
    base = find_model(model)
    if base.adapter is not None or base.checkpoint is not None:
        fixes = [Fix("make it one", command=f"tunesmith merge {model} OUT")]
        raise UsageError("E157", f"{model} is no whole model to merge into", where=Where(model), fixes=fixes)
    names = [str(locate_adapter(str(adapter_folder(name)))) for name in adapters]
    for at, name in enumerate(names):
        below = find_stack(names[:at])
        if (wanted := read_stack(Path(name))) and [one.hash for one in wanted] != [one.hash for one in below]:
            raise above_others(name, wanted, below, names[at:]) from None
    settings = [base.settings.model_copy(update={"merged_adapters": tuple(names[:at])}) for at in range(len(names))]
    *lower, last = (ModelSource(base.base, one, adapter=Path(name)) for one, name in zip(settings, names, strict=True))
    with staged(out, "the merged model") as stage:
        for source in lower:
            Merging.of(source, out).merged(source)
        merging = Merging.of(last, out)
        report = merging.write(*merging.merged(last), stage)
        write_card(last, stage, report)
    return report


def write_card(found: ModelSource, stage: Path, report: MergeReport) -> None:
    card = model_card(found, Path(report.folder).name, report.to_json())
    (stage / "README.md").write_text(card, encoding="utf-8")


def not_alike(proof: Proof, difference: float, limit: float, count: int, out: Path, dtype: torch.dtype) -> ModelError:
    return ModelError(
        "E156",
        f"the merged model does not predict what the adapter predicts: they differ by {difference:.2g} {proof.unit}; "
        f"rounding to {name_of(dtype)} explains at most {limit:g}",
        where=Where(str(out)),
        evidence=[f"{count} {proof.words} compared; nothing was written"],
        fixes=[
            "use the adapter as it is: every command takes the run",
            "if Tunesmith trained the adapter, report it",
        ],
    )


def merge_finite(model: nn.Module) -> PreTrainedModel:
    """The model with its adapter merged in place; ModelError E095 when a weight is not finite."""
    try:
        merged = merge(model) if isinstance(model, Adapted) else all_in_full(base_model(model))
    except ValueError as error:  # what PEFT raises for its own kinds of adapter
        raise not_finite([str(error)]) from error
    broken = [name for name, tensor in merged.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise not_finite(broken)
    return merged


def save_merged(
    merged: PreTrainedModel, dtype: torch.dtype, stage: Path, found: ModelSource, shard: str = SHARD
) -> None:
    """Round the weights and write them with tokenizer and generation config; a reward head stays in fp32."""
    if has_head(merged):
        head = head_modules(merged)
        for name, parameter in merged.named_parameters():
            parameter.data = parameter.data if name.startswith(head) else parameter.data.to(dtype)
        save_head(merged, stage, found.base, found.meaning, whole=True)
        return
    untie(merged)
    merged.to(dtype=dtype)  # pyright: ignore[reportCallIssue]
    merged.save_pretrained(str(stage), max_shard_size=shard)
    copy_tokenizer(found.base, stage, found.settings.added)


def not_finite(evidence: list[str]) -> ModelError:
    return ModelError(
        "E095",
        "the merged weights are not finite: they hold NaN or Inf",
        evidence=evidence[:10],
        fixes=["merge an older checkpoint of the run", "train again with a lower learning rate"],
    )


def untie(model: PreTrainedModel) -> None:
    """Say so in the config when training has parted an embedding and a head that were one tensor."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not embedding.weight:
        model.config.tie_word_embeddings = False


def computing_dtype(base: Path, written: torch.dtype) -> torch.dtype:
    """fp32, unless the model is so large that only half of it fits."""
    count = sum(tensor.numel for tensor in read_headers(base).values())
    return torch.float32 if 4 * count <= PRECISE_BYTES or written == torch.float32 else torch.bfloat16


def check_rows(found: ModelSource, tokenizer: Tokenizer) -> list[list[int]]:
    """Prompts to compare on: the first ones of the run's training data when it is still there, else fixed sentences."""
    rows: list[list[int]] = []
    task = found.meaning.task if found.outputs else Task()
    for source in training_sources(found):
        try:
            for entry in islice(read_entries(source, Tally("skip"), 4, task.kind), 4):
                rows += [example.tokens.tolist() for example in encode(entry, tokenizer, DataConfig(), task)]
        except (TunesmithError, OSError):  # moved or changed since the run: the fixed sentences are enough
            continue
    if tokenizer.has_template:
        rows += [tokenizer.prompt_ids([Message("user", text)]) for text in CHECKED]
    else:
        lead, end = tokenizer.start_ids, tokenizer.end_ids
        rows += [[*lead, *tokenizer.encode(text, specials=False), *end] for text in CHECKED]
    return [row[:CHECK_TOKENS] for row in rows if row]


def training_sources(found: ModelSource) -> list[SourceConfig]:
    if found.run is None:
        return []
    try:
        recipe = read_yaml(found.run.read_config(), str(found.run.config_file)).value
        listed = (recipe.get("data") or {}).get("train") or []
        return [SourceConfig.model_validate(each) for each in listed][:2]
    except (TunesmithError, ValueError, AttributeError):
        return []


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
