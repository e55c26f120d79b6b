"""Named tasks by Tunesmith and by the harness's `hf` backend in turn; started by harness.py with its settings."""

import json
import sys
import time
from pathlib import Path

import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.evaluate.lm_harness.backend import SHOT_SEED, Asked, TunesmithLM, load, quietly
from tunesmith.evaluate.lm_harness.respondent import Respondent
from tunesmith.models.config import ModelConfig
from tunesmith.models.load import load_base

OURS, HF = "tunesmith", "hf backend"


def ask(model, task, count: int) -> dict:
    """One task: processor time, what the harness tells, and every answer."""
    task.set_fewshot_seed(SHOT_SEED)
    begin, begin_cpu = time.perf_counter(), time.process_time()
    found = evaluate(lm=model, task_dict={"tasks": {task.task_name: task}}, limit=count, bootstrap_iters=0)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    samples = found["samples"][task.task_name]
    return {
        "cpu_seconds": cpu,
        "seconds": seconds,
        "told": found["results"][task.task_name],
        "answers": [one["resps"] for one in samples],
    }


def measure(settings: dict) -> dict:
    torch.set_num_threads(settings["threads"])
    folder, dtype, count = settings["model"], settings["dtype"], settings["count"]
    loaded = load(Asked(tuple(settings["tasks"]), Path(settings["data"]), shots=settings["shots"]))
    model = load_base(Path(folder), ModelConfig(path=folder, dtype=dtype)).requires_grad_(False).eval()
    ours = TunesmithLM(Respondent(model, load_tokenizer(Path(folder))))
    theirs = HFLM(pretrained=folder, dtype=dtype, device="cpu", batch_size=1)
    result: dict = {}
    with quietly():
        for name, task in loaded.tasks.items():
            ask(ours, task, 1), ask(theirs, task, 1)
            tried = {}
            for size in settings["batches"]:
                theirs.batch_size_per_gpu = size
                tried[size] = ask(theirs, task, count)["cpu_seconds"]
            theirs.batch_size_per_gpu = min(tried, key=tried.__getitem__)
            runs: dict[str, list[dict]] = {OURS: [], HF: []}
            for _ in range(settings["repeats"]):
                runs[OURS].append(ask(ours, task, count))
                runs[HF].append(ask(theirs, task, count))
            result[name] = {"tried": tried, "batch": theirs.batch_size_per_gpu, "runs": runs}
    return result


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    Path(given["out"]).write_text(json.dumps({"tasks": measure(given)}, default=float))
