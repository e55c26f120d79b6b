"""Means of weights: checkpoints or runs of one model (arXiv:2203.05482), and a tuned model with the one it began as.

The mean is formed tensor by tensor in fp32, as a running one: weights that are equal everywhere stay equal to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import CheckpointError, Fix, ModelError, UsageError, Where
from tunesmith.export.huggingface import MergeReport, Merging, write_card
from tunesmith.export.opening import ModelSource, Which, base_folder, find_model, load_source, model_settings
from tunesmith.export.staging import staged
from tunesmith.models.adapters.merging import scale
from tunesmith.models.headers import read_headers
from tunesmith.models.quantized.files import TAKEN
from tunesmith.train.checkpoint import CheckpointStore


def merge_share(source: str | Path, out: Path, share: float, *, which: Which = "auto") -> MergeReport:
    """Write base + share (tuned - base) of a run or adapter to the new folder `out` (WiSE-FT, arXiv:2109.01903).

    Where the adapter is a sum, W + s B A, the predictions are proven to be those of the adapter at s times the share;
    in any case those of the folder to be those of the weights. Raises UsageError E366 where there is no beginning.
    """
    found = find_model(str(source), which)
    if not 0 < share <= 1:
        message = f"the share is {share:g}: it is that of the tuned weights, above 0 and at most 1"
        raise UsageError("E366", message, where=Where("command line", field="--share"))
    start = start_of(found, str(source))
    with staged(out, "the merged model") as stage:
        merging = Merging.of(found, out)
        total, _ = merging.merged(found)
        beginning, _ = merging.merged(start)
        approach(total, beginning, 1 - share, str(start.base))
        del beginning
        if (scaled := scaled_predictions(merging, share)) is not None:
            merging.check(scaled, total, merging.computed)
        report = replace(merging.write(total, merging.predict(total), stage), share=share)
        write_card(found, stage, report)
    return report


def start_of(found: ModelSource, name: str) -> ModelSource:
    """The weights that a run began with, or those below an adapter."""
    if found.outputs:
        message = f"{name} gives values: the model that it began as has no head to go back to"
        raise UsageError("E366", message, where=Where(name), fixes=[Fix("merge it whole, without --share")])
    if found.adapter is not None and (found.adapter / TAKEN).is_file():
        message = f"{name} began with LoftQ of several rounds: the base below it is no model to go back to"
        raise UsageError("E366", message, where=Where(name), fixes=[Fix("merge it whole, without --share")])
    if found.adapter is not None or found.checkpoint is not None:
        return ModelSource(found.base, found.settings)
    if found.run is None:
        message = f"{name} is a whole model, and nothing says what it began as"
        command = f"tunesmith average {name} BASE OUT --shares 0.5,0.5"
        raise UsageError("E366", message, where=Where(name), fixes=[Fix("name its base", command=command)])
    settings = model_settings(found.run)
    return ModelSource(base_folder(found.run, settings), settings)


def scaled_predictions(merging: Merging, share: float) -> Tensor | None:
    """What the adapter predicts with every update times `share`; None for one that is no sum."""
    model = load_source(merging.found, merging.word)
    if not isinstance(model, PeftModel) or not scale(model, share):
        return None
    return merging.predict(model)


def average(sources: Sequence[ModelSource], out: Path, weights: Sequence[float] = ()) -> MergeReport:
    """Write the weighted mean of the weights of several models of one architecture to the new folder `out`.

    Adapters are merged first. Raises UsageError E360 for weights that make no sense, ModelError E365 for models that
    have no mean.
    """
    shares = checked(weights or (1.0,) * len(sources), len(sources))
    for other in sources[1:]:
        check_alike(sources[0], other)
    with staged(out, "the mean") as stage:
        merging = Merging.of(sources[0], out)
        total, _ = merging.merged(sources[0])
        reached = shares[0]
        for source, share in zip(sources[1:], shares[1:], strict=True):
            reached += share
            other, _ = merging.merged(source)
            approach(total, other, share / reached, source.told)
            del other
        names = tuple(f"{share:.3g} x {told_shortly(source)}" for source, share in zip(sources, shares, strict=True))
        report = replace(merging.write(total, merging.predict(total), stage), averaged=names)
        write_card(sources[0], stage, report)
    return report


def find_averaged(names: Sequence[str], which: Which, checkpoints: int | None) -> list[ModelSource]:
    """The models of these names, or the newest `checkpoints` of the one run that is named."""
    if checkpoints is None:
        return [find_model(name, which) for name in names]
    if len(names) > 1:
        message = f"--checkpoints takes those of one run, and {len(names)} names are given"
        raise UsageError("E360", message, where=Where("command line", field="--checkpoints"))
    newest = find_model(names[0], "newest")
    if newest.run is None:
        message = f"{names[0]} is no run: it has no checkpoints"
        raise UsageError("E360", message, where=Where("command line", field="--checkpoints"))
    store = CheckpointStore(newest.run.checkpoints)
    steps = store.steps()[:checkpoints]
    if len(steps) < checkpoints:
        raise CheckpointError(
            "E155",
            f"the run {newest.run.id} keeps {len(steps)} checkpoints",
            where=Where(str(newest.run.checkpoints)),
            evidence=[f"step {step}" for step in steps],
            fixes=[f"--checkpoints {len(steps)}", "keep more next time: train.checkpoint.keep"],
        )
    return [replace(newest, checkpoint=store.at(step)) for step in steps]


def checked(weights: Sequence[float], count: int) -> list[float]:
    """The weights as shares of their sum."""
    problem = None
    if count < 2:
        problem = "there is only one model: a mean is of two or more"
    elif len(weights) != count:
        problem = f"{len(weights)} weights for {count} models: give one for each, in their order"
    elif not all(0 < weight < float("inf") for weight in weights):
        problem = "the weights of a mean are above 0"
    if problem:
        raise UsageError("E360", problem, where=Where("command line", field="--shares"))
    return [weight / sum(weights) for weight in weights]


def check_alike(one: ModelSource, other: ModelSource) -> None:
    """Tensors of one name and shape, and one vocabulary."""
    ours, theirs = read_headers(one.base), read_headers(other.base)
    odd = [name for name in ours.keys() & theirs.keys() if ours[name].shape != theirs[name].shape]
    odd += [name for name in ours.keys() ^ theirs.keys() if not name.endswith("lm_head.weight")]
    if odd or one.outputs != other.outputs:
        raise no_mean(one, other, "tensors differ", [*sorted(odd)[:10]])
    ours, theirs = (load_tokenizer(each.base, each.settings.new_tokens).vocabulary() for each in (one, other))
    if ours != theirs:
        raise no_mean(one, other, "their vocabularies differ", [])


def no_mean(one: ModelSource, other: ModelSource, why: str, evidence: list[str]) -> ModelError:
    return ModelError(
        "E365",
        f"{one.told} and {other.told} have no mean: {why}",
        where=Where(str(other.base)),
        evidence=evidence,
        fixes=["average models that were tuned from one base"],
    )


@torch.no_grad()
def approach(total: PreTrainedModel, other: PreTrainedModel, share: float, told: str) -> None:
    """total <- total + share (other - total), in fp32; an embedding that `other` uses twice stands for both."""
    theirs = dict(other.named_parameters(remove_duplicate=False))
    ours = dict(total.named_parameters())
    lost = theirs.keys() - dict(total.named_parameters(remove_duplicate=False)).keys()
    odd = sorted([name for name in ours if name not in theirs] + list(lost))
    parted = [name for name in dict(other.named_parameters()) if name not in ours]
    if odd or parted:
        raise ModelError(
            "E365",
            "the models have no mean: a head of its own stands beside one that is shared with the embedding",
            where=Where(told),
            evidence=(odd or parted)[:10],
            fixes=["name the model with the head of its own first"],
        )
    for name, parameter in ours.items():
        parameter.copy_(parameter.float().lerp_(theirs[name].float(), share).to(parameter.dtype))


def told_shortly(source: ModelSource) -> str:
    """A source without the path of its folder."""
    if source.run is not None:
        return source.told
    return (source.adapter or source.base).name
