"""The time of a step's matrix products alone, measured on this machine: no step can take less without doing less.

Run as a script it measures; it needs torch and nothing else of the project. Every product of the forward and backward
pass is counted once: base weights twice when frozen and three times when trained, low-rank ones likewise, attention
with its causal half, the vocabulary projection at scored positions only. Norms, activations, the softmax, the loss, the
optimiser and all copies cost nothing here.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROWS = 1024  # tokens of one product of the body; a larger product is hardly faster
HEAD_ROWS = 256
BLOCK = 256  # tokens of a block of attention; whole documents would write their scores to memory and read them again
SECONDS = 0.3  # spent on each product


@dataclass(frozen=True)
class Product:
    """`batch` products of (rows, inner) by (inner, columns), `count` times, which need not be a whole number."""

    rows: int
    inner: int
    columns: int
    count: float
    batch: int = 1

    @property
    def flops(self) -> float:
        return 2.0 * self.batch * self.rows * self.inner * self.columns * self.count


def products(config: dict, lengths: list[int], scored: int, rank: int | None) -> list[Product]:
    """Those of a step over documents of these lengths with so many scored tokens; `rank` None trains all weights."""
    tokens, layers = sum(lengths), config["num_hidden_layers"]
    hidden, head = config["hidden_size"], config["head_dim"]
    query, key = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    wide = config["intermediate_size"]
    body = [(hidden, query, 1), (hidden, key, 2), (query, hidden, 1), (hidden, wide, 2), (wide, hidden, 1)]
    found = []
    for inner, columns, number in body:
        times = number * layers * tokens / ROWS
        found += passes(ROWS, inner, columns, times, trained=rank is None)
        if rank is not None:
            found += passes(ROWS, inner, rank, times, trained=True) + passes(ROWS, rank, columns, times, trained=True)
    found += passes(HEAD_ROWS, hidden, config["vocab_size"], scored / HEAD_ROWS, trained=rank is None)
    # Two products forward, five backward, which forms the scores again; each of them half masked.
    block = min(BLOCK, max(lengths))
    times = 7 / 2 * layers * sum(length**2 for length in lengths) / block**2
    found.append(Product(block, head, block, times, batch=config["num_attention_heads"]))
    return found


def passes(rows: int, inner: int, columns: int, times: float, trained: bool) -> list[Product]:
    """Forward, gradient of the input, and gradient of the weight where it is trained."""
    found = [Product(rows, inner, columns, times), Product(rows, columns, inner, times)]
    return [*found, Product(inner, rows, columns, times)] if trained else found


def measure(wanted: list[Product], dtype: str, threads: int) -> dict[str, float]:
    """Seconds of all of them together, from the fastest of repeated products of each shape, and their operations."""
    import torch

    torch.set_num_threads(threads)
    kind = {"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]
    best: dict[tuple, float] = {}
    for product in wanted:
        shape = (product.batch, product.rows, product.inner, product.columns)
        if shape not in best:
            left = torch.randn(product.batch, product.rows, product.inner).to(kind)
            right = torch.randn(product.batch, product.inner, product.columns).to(kind)
            out = torch.empty(product.batch, product.rows, product.columns, dtype=kind)
            best[shape] = fastest(lambda left=left, right=right, out=out: torch.bmm(left, right, out=out))
    times = [best[one.batch, one.rows, one.inner, one.columns] * one.count for one in wanted]
    return {"floor_seconds": sum(times), "floor_flops": sum(one.flops for one in wanted)}


def fastest(work: Callable[[], object]) -> float:
    work()
    least, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - start)
    return least


def main(settings: dict) -> dict:
    config = json.loads(Path(settings["model"], "config.json").read_text())
    wanted = products(config, settings["lengths"], settings["scored"], settings["rank"])
    return measure(wanted, settings["dtype"], settings["threads"])


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    Path(given["out"]).write_text(json.dumps(main(given)))
