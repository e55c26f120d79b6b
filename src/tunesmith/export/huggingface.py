"""A trained run becomes one ordinary model folder, written only when its predictions are proven equal."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.data.config import SourceConfig
from tunesmith.data.entries import read_entries
from tunesmith.data.tally import Tally
from tunesmith.data.tokenizer import Tokenizer, load_tokenizer
from tunesmith.errors import BadInput, Fix, MachineError, ModelError, TunesmithError, UsageError, Where
from tunesmith.export.card import model_card
from tunesmith.export.opening import ModelSource, Which, find_model, load_source
from tunesmith.models.adapters import merge
from tunesmith.models.config import ModelConfig
from tunesmith.models.forward import base_model
from tunesmith.models.headers import read_headers
from tunesmith.models.load import load_base, resolve_dtype
from tunesmith.models.safety import read_config
from tunesmith.models.save import copy_tokenizer
from tunesmith.types import Completion, Conversation, Message

PRECISE_BYTES = 16 * 2**30  # largest fp32 model that is formed and compared in fp32
CHECK_TOKENS = 64  # tokens of each prompt that are compared: bounds the predictions held in memory
CHECKED = (
    "What is the capital of France, and what is it known for?",
    "Write two sentences about the sea.",
    "A train leaves at 9:40 and arrives at 12:05. How long does it take?",
    "Name three colours.",
)
# Largest mean KL divergence, in nats, from the adapter's predictions to the merged model's, by (computed, written)
# type. The merge is proven in the computing type first, so the limits for a smaller written type allow for rounding.
TOLERANCE = {
    (torch.float32, torch.float32): 1e-5,
    (torch.float32, torch.bfloat16): 3e-2,  # rounding alone; the merge itself is proven in fp32 before
    (torch.bfloat16, torch.bfloat16): 3e-2,
}


@dataclass(frozen=True, slots=True)
class MergeReport:
    """`difference` is the mean KL divergence in nats over `positions` predictions, `limit` the largest allowed."""

    folder: str
    base: str
    dtype: str
    bytes: int
    difference: float
    limit: float
    positions: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def merge_run(source: str | Path, out: Path, *, which: Which = "auto") -> MergeReport:
    """Write the run's (or PEFT folder's) weights, merged into the base, to the new folder `out`.

    W + s BA is formed in fp32 and cast once. The folder is read back and its predictions on a few prompts compared with
    the adapter's. ModelError E095 (not finite) and E156 (predictions differ) leave nothing behind.
    """
    found = find_model(str(source), which)
    if found.run is None and found.adapter is None:
        raise UsageError("E157", f"{source} is a whole model already: nothing to merge", where=Where(str(source)))
    check_target(out)
    stage = out.with_name(f".tmp-{out.name}-{uuid.uuid4().hex[:8]}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        report = write_merged(found, stage, out)
        (stage / "README.md").write_text(model_card(found, out.name, report.to_json()), encoding="utf-8")
        if out.exists():
            out.rmdir()
        os.replace(stage, out)
    except OSError as error:
        message = f"the merged model cannot be written: {error.strerror or error}"
        fixes = ["free some space, or choose another folder"]
        raise MachineError("E158", message, where=Where(str(out)), fixes=fixes) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return report


def write_merged(found: ModelSource, stage: Path, out: Path) -> MergeReport:
    """Write everything but the card to `stage`, read it back, compare."""
    written = resolve_dtype(found.settings.dtype, read_config(found.base)[0])
    computed = computing_dtype(found.base, written)
    tokenizer = load_tokenizer(found.base)
    rows = check_rows(found, tokenizer)
    model = load_source(found, "float32" if computed == torch.float32 else "bfloat16")
    wanted = predictions(model, rows)

    def prove(merged: PreTrainedModel) -> None:
        check_agreement(wanted, predictions(merged.eval(), rows), TOLERANCE[computed, computed], out, computed)

    save_merged(model, written, stage, found.base, prove)
    del model
    again = load_base(stage, ModelConfig(path=str(stage), dtype="float32" if computed == torch.float32 else "bfloat16"))
    limit = TOLERANCE[computed, written]
    difference = check_agreement(wanted, predictions(again.eval(), rows), limit, out, written)
    size = sum(path.stat().st_size for path in stage.glob("*.safetensors"))
    return MergeReport(str(out), str(found.base), name_of(written), size, difference, limit, len(wanted))


def check_agreement(wanted: Tensor, found: Tensor, limit: float, out: Path, dtype: torch.dtype) -> float:
    """The mean divergence in nats; ModelError E156 beyond the limit."""
    difference = divergence(wanted, found)
    if not difference <= limit:
        raise ModelError(
            "E156",
            f"the merged model does not predict what the adapter predicts: they differ by {difference:.2g} nats per "
            f"token; rounding to {name_of(dtype)} explains at most {limit:g}",
            where=Where(str(out)),
            evidence=[f"{len(wanted)} predictions compared; nothing was written"],
            fixes=[
                "use the adapter as it is: chat and eval take the run",
                "if Tunesmith trained the adapter, report it",
            ],
        )
    return difference


def save_merged(
    model: nn.Module, dtype: torch.dtype, stage: Path, base: Path, prove: Callable[[PreTrainedModel], None]
) -> None:
    """Merge in place, prove the result before it is rounded, and write it with tokenizer and generation config."""
    try:
        merged = merge(model) if isinstance(model, PeftModel) else base_model(model)
    except ValueError as error:  # what PEFT raises for its own kinds of adapter
        raise not_finite([str(error)]) from error
    broken = [name for name, tensor in merged.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise not_finite(broken)
    prove(merged)
    untie(merged)
    merged.to(dtype=dtype)  # pyright: ignore[reportCallIssue]
    merged.save_pretrained(str(stage))
    copy_tokenizer(base, stage)


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


def check_target(out: Path) -> None:
    """UsageError E157 when the place is taken; an empty folder is not."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UsageError(
            "E157",
            f"{out} already holds something",
            where=Where(str(out)),
            fixes=[Fix("give the name of a new folder")],
        )


def computing_dtype(base: Path, written: torch.dtype) -> torch.dtype:
    """fp32, unless the model is so large that only its own type fits."""
    count = sum(tensor.numel for tensor in read_headers(base).values())
    return torch.float32 if 4 * count <= PRECISE_BYTES else written


def check_rows(found: ModelSource, tokenizer: Tokenizer) -> list[list[int]]:
    """Prompts to compare on: the first ones of the run's training data when it is still there, else fixed sentences."""
    rows: list[list[int]] = []
    for source in training_sources(found):
        try:
            for entry in islice(read_entries(source, Tally("skip"), 4), 4):
                rows.append(entry_ids(entry, tokenizer))
        except (TunesmithError, OSError):  # moved or changed since the run: the fixed sentences are enough
            continue
    if tokenizer.has_template:
        rows += [tokenizer.prompt_ids([Message("user", text)]) for text in CHECKED]
    else:
        rows += [[*tokenizer.start_ids, *tokenizer.encode(text, specials=False)] for text in CHECKED]
    return [row[:CHECK_TOKENS] for row in rows if row]


def training_sources(found: ModelSource) -> list[SourceConfig]:
    import yaml

    if found.run is None:
        return []
    try:
        listed = (yaml.safe_load(found.run.read_config()).get("data") or {}).get("train") or []
        return [SourceConfig.model_validate(each) for each in listed][:2]
    except (BadInput, yaml.YAMLError, ValueError, AttributeError):
        return []


def entry_ids(entry: object, tokenizer: Tokenizer) -> list[int]:
    """The record as the model reads it, its answer included."""
    if isinstance(entry, Conversation):
        return tokenizer.encode(
            tokenizer.render(entry.messages, entry.tools, add_generation_prompt=False), specials=True
        )
    text = entry.prompt + entry.completion if isinstance(entry, Completion) else entry.text  # pyright: ignore[reportAttributeAccessIssue]
    return [*tokenizer.start_ids, *tokenizer.encode(text, specials=False)]


@torch.no_grad()
def predictions(model: nn.Module, rows: Sequence[Sequence[int]]) -> Float[Tensor, "K V"]:
    """Log-probabilities of every next token, by transformers' own forward."""
    base = base_model(model)
    base.set_attn_implementation("eager")
    parts = [base(input_ids=torch.tensor([list(row)]), use_cache=False).logits[0].float() for row in rows]
    return torch.cat(parts).log_softmax(-1)


def divergence(wanted: Float[Tensor, "K V"], found: Float[Tensor, "K V"]) -> float:
    """Mean KL(wanted, found) over the predictions, in nats; NaN when any is not finite."""
    return (wanted.exp() * (wanted - found)).sum(-1).mean().item()


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
