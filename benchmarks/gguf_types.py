"""GGUF files of every architecture and type, loaded by llama.cpp: how far its logits are from the model's own.

    python benchmarks/gguf_types.py shapes       # tiny random models, against the same model with rounded weights
    python benchmarks/gguf_types.py MODEL ...    # models, against themselves

Needs llama-cpp-python; prints Markdown tables.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.export.gguf.engine import llama_ids, llama_logits
from tunesmith.export.gguf.tensors import as_stored
from tunesmith.export.gguf.types import FILE_TYPES
from tunesmith.export.gguf.vocabulary import read_vocabulary
from tunesmith.export.gguf.write import About, write_gguf
from tunesmith.export.opening import find_model
from tunesmith.export.verifying import PROMPTS, ROUNDED, both, compared, logits_of, prompt_rows

ROWS = [[5, 9, 200, 31], list(range(20, 60))]
ABOUT = About("compared", "base", 512)


def shapes(kinds: list[str]) -> None:
    """A row for each architecture, a column for each type: KL divergence from the model with weights rounded alike."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.unit.export.shapes import SHAPES, loaded, shape_folder

    print("| model |", " | ".join(kinds), "|\n|---|" + "---|" * len(kinds))
    for name in SHAPES:
        with tempfile.TemporaryDirectory() as place:
            folder = shape_folder(Path(place) / "model", name)
            model, words = loaded(folder), read_vocabulary(folder, loaded(folder).config.vocab_size)
            tokenizer = load_tokenizer(folder)
            cells: list[str] = []
            for kind in kinds:
                path = Path(place) / "model.gguf"
                write_gguf(path, model, FILE_TYPES[kind], words, ABOUT)
                wanted = logits_of(as_stored(model, FILE_TYPES[kind]), ROWS)
                divergence = compared(wanted, llama_logits(path, ROWS))[0]
                ids = [tokenizer.encode(text, specials=False) for text in PROMPTS]
                cells.append(f"{divergence:.1g}" if llama_ids(path, PROMPTS) == ids else "other ids")
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


def model_table(name: str, kinds: list[str]) -> None:
    """A row for each type: size, KL divergence from the model, share of positions with the same likeliest token."""
    found = find_model(name)
    tokenizer = load_tokenizer(found.base)
    rows = prompt_rows(found, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(found.base, dtype=torch.float32)
    wanted, words = logits_of(model, rows), read_vocabulary(found.base, model.config.vocab_size)
    print(f"\n{name}: {len(rows)} prompts, {len(wanted)} positions\n")
    print("| type | MB | nats per token | allowed | same likeliest token | largest difference of a logit |")
    print("|---|---|---|---|---|---|")
    for kind in kinds:
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "model.gguf"
            write_gguf(path, model, FILE_TYPES[kind], words, ABOUT)
            divergence, logit, same = compared(wanted, llama_logits(path, rows))
            size, limit = path.stat().st_size / 1e6, both(FILE_TYPES[kind].limit, ROUNDED)
        print(f"| {kind} | {size:.0f} | {divergence:.2g} | {limit:.2g} | {same:.1%} | {logit:.2g} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--types", default=",".join(FILE_TYPES))
    chosen = parser.parse_args()
    kinds = chosen.types.split(",")
    for name in chosen.models:
        if name == "shapes":
            shapes(kinds)
        else:
            model_table(name, kinds)


if __name__ == "__main__":
    main()
