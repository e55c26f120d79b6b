"""Rows of the GPU benchmark trained by Tunesmith's own step; started by gpu.py with a JSON file of settings."""

import sys
import time
from pathlib import Path

import torch
from gpu_side import OutOfTime, documents, equal_adapters, first_scored, run_rows, settings_of, synchronize

from tunesmith.data.packing import batch_of
from tunesmith.distributed.mesh import Mesh
from tunesmith.models.adapters import trainable
from tunesmith.models.base_products import use_products
from tunesmith.models.config import ModelConfig
from tunesmith.models.fp8_config import Fp8Config
from tunesmith.models.fp8_layers import use_fp8
from tunesmith.models.load import load_model
from tunesmith.objectives import SFT
from tunesmith.train.optimizer import Optimizer, clip
from tunesmith.train.optimizers import AdamW
from tunesmith.train.step import compute_step
from tunesmith.types import Batch, Example

FULL_RATE = 2e-5  # of tuning every weight, which is too much at the rate of adapters


def microbatches(given: dict, row: dict, tokens, at_once: int) -> list[Batch]:
    examples = []
    for document in tokens:
        weights = torch.ones(len(document)).numpy()
        weights[: first_scored(given, row)] = 0
        examples.append(Example(document.astype("int32"), weights, "drawn", 1))
    return [batch_of(examples[start : start + at_once]) for start in range(0, len(examples), at_once)]


def train(model: torch.nn.Module, given: dict, row: dict, at_once: int) -> dict:
    """Steps as the training loop takes them; the clock stops when the device has finished each."""
    count = equal_adapters(model, given["seed"])
    rate = given["lr"] if count else FULL_RATE
    optimizer, mesh = Optimizer(trainable(model), AdamW(lr=rate)), Mesh()
    ends, losses = [time.perf_counter()], []
    for tokens in documents(given, row):
        if time.time() > given["deadline"]:
            raise OutOfTime
        result = compute_step(model, microbatches(given, row, tokens, at_once), (SFT(),), optimizer, mesh)
        clip(optimizer.gradients(), result.grad_norm, 1.0)
        optimizer.set_rate(1.0)
        optimizer.step()
        synchronize(given["device"])
        ends.append(time.perf_counter())
        losses.append(result.loss)
    return {"ends": ends, "losses": losses, "equal_adapters": count}


def main(given: dict) -> None:
    adapter = {"method": "lora", "rank": given["rank"], "alpha": given["alpha"]}
    wanted = {"path": given["model"], "dtype": given["dtype"], "adapter": adapter, **given["option"]}
    settings = ModelConfig.model_validate(wanted)
    model = load_model(Path(given["model"]), settings, given["device"]).train()
    use_products(model, settings.base_products)
    use_fp8(model, None if given["fp8"] is None else Fp8Config(**given["fp8"]))
    run_rows(given, lambda row, at_once: train(model, given, row, at_once))


if __name__ == "__main__":
    main(settings_of(sys.argv[1]))
