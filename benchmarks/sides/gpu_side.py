"""What the sides of the GPU benchmark share: documents, equal adapters, memory, and rows within the time."""

import gc
import importlib.metadata
import json
import re
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

PACKAGES = ("torch", "triton", "transformers", "peft", "accelerate", "trl", "unsloth", "unsloth_zoo", "liger_kernel")
PROJECTION = re.compile(r"layers\.(\d+)\..*?([a-z]+_proj)\b")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SPARE = 10  # seconds before the deadline from which no row is begun


class OutOfTime(Exception):
    """The budget ended within a row."""


def documents(given: dict, row: dict) -> list[np.ndarray]:
    """Random tokens (documents, length) of every step, the same on all sides; the first ids are special ones."""
    chance = np.random.default_rng(given["seed"])
    size = (row["documents"], row["length"])
    return [chance.integers(10, given["vocabulary"], size) for _ in range(given["warmup"] + given["steps"])]


def first_scored(given: dict, row: dict) -> int:
    """Tokens at the start of each document that no loss reads; the first one never has anything that predicts it."""
    return max(1, round((1 - given["scored"]) * row["length"]))


@torch.no_grad()
def equal_adapters(model: torch.nn.Module, seed: int) -> int:
    """Give every projection's adapter weights that depend on its name alone: A is drawn, B is zero; returns how many.

    A layer whose adapters go by other names keeps its own: only the first loss is the same then.
    """
    count = 0
    for name, parameter in model.named_parameters():
        found = PROJECTION.search(name)
        if "lora_B" in name:
            parameter.zero_()
        elif "lora_A" in name and found:
            chance = np.random.default_rng([seed, int(found[1]), zlib.crc32(found[2].encode())])
            drawn = chance.standard_normal(parameter.shape, dtype=np.float32) / parameter.shape[-1] ** 0.5
            parameter.copy_(torch.from_numpy(drawn))
            count += 1
    return count


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def run_rows(given: dict, train: Callable[[dict, int], dict]) -> None:
    """Train every row, with fewer documents at once when memory runs out; each result is a line of the file `out`."""
    for row in given["rows"]:
        with open(given["out"], "a") as lines:
            lines.write(json.dumps({**row, **run_row(given, row, train)}) + "\n")


def run_row(given: dict, row: dict, train: Callable[[dict, int], dict]) -> dict:
    at_once = row["documents"]
    while at_once:
        if time.time() > given["deadline"] - SPARE:
            return {"skipped": "out of time"}
        free(given["device"])
        found = attempt(train, row, at_once)
        if found is not None:
            return {**found, **memory(given["device"]), "documents_at_once": at_once, "versions": versions()}
        at_once //= 2
    return {"skipped": "out of memory with one document at once"}


def attempt(train: Callable[[dict, int], dict], row: dict, at_once: int) -> dict | None:
    """The row's result; None when memory runs out. What failed is let go on return, with the frames that hold it."""
    try:
        return train(row, at_once)
    except torch.OutOfMemoryError:
        return None
    except OutOfTime:
        return {"skipped": "out of time"}


def memory(device: str) -> dict:
    if device != "cuda":
        return {"peak_allocated": None, "peak_reserved": None}
    return {"peak_allocated": torch.cuda.max_memory_allocated(), "peak_reserved": torch.cuda.max_memory_reserved()}


def versions() -> dict:
    known = {distribution.metadata["Name"].replace("-", "_"): distribution.version for distribution in _installed()}
    return {name: known[name] for name in PACKAGES if name in known}


def _installed() -> list[importlib.metadata.Distribution]:
    return [found for found in importlib.metadata.distributions() if found.metadata["Name"]]


def settings_of(path: str) -> dict:
    return json.loads(Path(path).read_text())
