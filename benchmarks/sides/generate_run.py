"""Answers of a fixed length by the engine or by transformers; started by generate.py with a JSON file of settings."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from memory import memory_peak
from transformers import AutoModelForCausalLM

from tunesmith.models.config import ModelConfig
from tunesmith.models.load import load_base
from tunesmith.rollout.continuous import Asked, answers
from tunesmith.rollout.engine.engine import Engine

Decode = Callable[[int], list[list[int]]]  # tokens of every answer, for a number of tokens


def by_engine(settings: dict, prompts: Sequence[Sequence[int]]) -> Decode:
    model = load_base(Path(settings["model"]), ModelConfig(path=settings["model"], dtype=settings["dtype"])).eval()
    engine = Engine(model, settings["held"])

    def decode(count: int) -> list[list[int]]:
        asked = [
            Asked((prompt, answer), prompt, count)
            for prompt in range(len(prompts))
            for answer in range(settings["answers"])
        ]
        made: dict[tuple[int, int], list[int]] = {each.name: [] for each in asked}
        greedy = lambda logits, live: logits.float().argmax(-1).tolist()  # noqa: E731
        for name, token, _ in answers(engine, prompts, asked, greedy, frozenset(), len(asked)):
            made[name].append(token)
        return list(made.values())

    return decode


def by_transformers(settings: dict, prompts: Sequence[Sequence[int]]) -> Decode:
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[settings["dtype"]]
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=dtype).eval()
    width, rows = max(map(len, prompts)), settings["answers"]
    tokens, mask = torch.zeros(2, len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    tokens, mask = tokens.repeat_interleave(rows, 0), mask.repeat_interleave(rows, 0)

    def decode(count: int) -> list[list[int]]:
        out = model.generate(
            tokens, attention_mask=mask, do_sample=False, max_new_tokens=count, eos_token_id=None, pad_token_id=0
        )
        return out[:, width:].tolist()

    return decode


def measure(settings: dict) -> dict:
    torch.set_num_threads(settings["threads"])
    prompts = settings["prompts"]
    decode = (by_transformers if settings["program"] == "transformers" else by_engine)(settings, prompts)
    decode(2)
    begin = time.perf_counter()
    decode(1)
    first = time.perf_counter() - begin
    begin, begin_cpu = time.perf_counter(), time.process_time()
    made = decode(settings["tokens"])
    seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    count = len(made) * settings["tokens"]
    return {
        "tokens_per_second": count / seconds,
        "tokens_per_cpu_second": count / cpu,
        "first_token_seconds": first,
        "made": made,
        "peak_bytes": memory_peak(),
    }


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    Path(given["out"]).write_text(json.dumps(measure(given)))
