"""One measured run of `tunesmith train`; started by preference.py in Tunesmith's environment with JSON settings."""

import json
import os
import sys
import time
from pathlib import Path

from memory import memory_peak
from tunesmith_sft import Clock


class StartClock(Clock):
    """Marks the start as well: when the run says that it trains, before its first reference or forward pass."""

    def look(self) -> None:
        status = self.metrics.parent / "status.json"
        if not self.ends and status.exists() and '"phase": "train"' in status.read_text():
            self.ends.append((time.perf_counter(), time.process_time()))
        super().look()


def write_tokens(settings: dict) -> dict:
    """Prompt and answers of every record exactly as Tunesmith trains them, with the texts they decode to."""
    from tunesmith.data.config import DataConfig, SourceConfig
    from tunesmith.data.prepared import prepare
    from tunesmith.data.tokenizer import load_tokenizer
    from tunesmith.types import Task

    tokenizer = load_tokenizer(Path(settings["model"]))
    task = Task(kind="feedback" if settings["method"] == "kto" else "pair")
    data = DataConfig(max_length=settings["max_length"])
    prepared = prepare([SourceConfig(path=settings["data"])], data, tokenizer, task=task)
    if prepared.report.dropped:
        raise SystemExit(f"records were dropped: {prepared.report.dropped}; raise max_length")
    rows = []
    for example in (prepared[index] for index in range(len(prepared))):
        ends = (*example.cuts[1:], len(example))
        spans = [scored(example.weights, *span) for span in zip(example.cuts, ends, strict=True)]
        prompt, answers = example.tokens[: example.cuts[0]].tolist(), [example.tokens[span].tolist() for span in spans]
        texts = [tokenizer.decode(answer) for answer in answers]
        rows.append(
            {
                "prompt": prompt,
                "answers": answers,
                "labels": list(example.labels),
                "prompt_text": tokenizer.decode(prompt),
                "answer_texts": texts,
            }
        )
    Path(settings["tokens"]).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"key": prepared.key}


def scored(weights, start: int, end: int) -> slice:
    """The answer up to the last token of the loss; all of it has to be in the loss, as it is for the peers."""
    while end > start and not weights[end - 1]:
        end -= 1
    if end == start or not weights[start:end].all():
        raise SystemExit("an answer is not in the loss as a whole: the peers would train other tokens")
    return slice(start, end)


def overrides(settings: dict) -> list[str]:
    reference = [] if settings["method"] == "orpo" else ["model.reference.source=adapter_off"]
    return [
        *reference,
        f"objective.beta={settings['beta']}",
        f"model.path={settings['model']}",
        f"model.dtype={settings['dtype']}",
        f"model.adapter.rank={settings['rank']}",
        f"model.adapter.alpha={settings['alpha']}",
        f"model.adapter_path={settings['adapter']}",
        f"data.train={settings['data']}",
        f"data.max_length={settings['max_length']}",
        "data.shuffle=false",
        f"train.epochs={settings['epochs']}",
        f"train.sequences_per_step={settings['records']}",
        f"train.optimizer.lr={settings['lr']}",
        "train.schedule.name=constant",
        "train.schedule.warmup=0",
        "train.clip_norm=1.0",
        f"train.seed={settings['seed']}",
        f"train.threads={settings['threads']}",
        f"run.folder={settings['folder']}",
        "run.name=bench",
    ]


def train(settings: dict) -> dict:
    from tunesmith.__main__ import limit_kernels, main

    limit_kernels()  # as the command does, before the imports below
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(settings["threads"])
    baseline = memory_peak()
    clock = StartClock(Path(settings["folder"]) / "bench" / "metrics.jsonl")
    clock.start()
    sys.argv = ["tunesmith", "train", settings["method"], *overrides(settings), "--yes", "--json"]
    try:
        main()
    except SystemExit as stopped:
        if stopped.code:
            raise
    clock.done.set()
    clock.join()
    clock.look()
    return {
        "losses": [row["train/loss"] for row in clock.rows],
        "ends": clock.ends,
        "computed_tokens": [row["train/tokens_per_step"] for row in clock.rows],
        "self_reported_step_seconds": [row["perf/step_s"] for row in clock.rows],
        "peak_bytes": memory_peak(),
        "import_bytes": baseline,
    }


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    # A home of its own: what an earlier run kept, the reference's log-probabilities above all, must not be found.
    os.environ["TUNESMITH_HOME"] = f"{given['folder']}/home"
    done = write_tokens(given) if given["task"] == "tokens" else train(given)
    Path(given["out"]).write_text(json.dumps(done))
