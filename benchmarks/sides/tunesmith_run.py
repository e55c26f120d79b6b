"""What every measured run of `tunesmith train` shares: a clock, its settings, and the tokens it trains."""

import json
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from memory import memory_peak


class Clock(threading.Thread):
    """Wall and processor time at every new row of metrics.jsonl, looked for every 10 ms.

    `ends[0]` is the start: when the run says that it trains, before its first reference or forward pass.
    """

    def __init__(self, metrics: Path) -> None:
        super().__init__(daemon=True)
        self.metrics = metrics
        self.ends: list[tuple[float, float]] = []
        self.rows: list[dict] = []
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.01):
            self.look()

    def look(self) -> None:
        status = self.metrics.parent / "status.json"
        if not self.ends and status.exists() and '"phase": "train"' in status.read_text():
            self.ends.append((time.perf_counter(), time.process_time()))
        if not self.metrics.exists():
            return
        rows = [json.loads(line) for line in self.metrics.read_text().splitlines() if line.endswith("}")]
        rows = [row for row in rows if "train/loss" in row]
        now = (time.perf_counter(), time.process_time())
        self.ends += [now] * (len(rows) - len(self.rows))
        self.rows = rows


def prepared_rows(settings: dict, kind: str) -> list[dict]:
    """Prompt and answers of every record exactly as Tunesmith trains them, with the texts they decode to.

    What follows the last scored token of an answer is left out, for every side: no loss depends on it.
    """
    from tunesmith.data.config import DataConfig, SourceConfig
    from tunesmith.data.prepared import prepare
    from tunesmith.data.tokenizer import load_tokenizer
    from tunesmith.types import Task

    tokenizer = load_tokenizer(Path(settings["model"]))
    data = DataConfig(max_length=settings["max_length"])
    prepared = prepare([SourceConfig(path=settings["data"])], data, tokenizer, task=Task(kind=kind))
    if prepared.report.dropped:
        raise SystemExit(f"records were dropped: {prepared.report.dropped}; raise max_length")
    rows = []
    for example in (prepared[index] for index in range(len(prepared))):
        cuts = example.cuts or (int(example.weights.argmax()),)
        spans = [scored(example.weights, *span) for span in zip(cuts, (*cuts[1:], len(example)), strict=True)]
        prompt, answers = example.tokens[: cuts[0]].tolist(), [example.tokens[span].tolist() for span in spans]
        rows.append(
            {
                "prompt": prompt,
                "answers": answers,
                "labels": list(example.labels),
                "prompt_text": tokenizer.decode(prompt),
                "answer_texts": [tokenizer.decode(answer) for answer in answers],
            }
        )
    return rows


def scored(weights, start: int, end: int) -> slice:
    """The answer up to the last token of the loss; all of it has to be in the loss, as it is for the peers."""
    while end > start and not weights[end - 1]:
        end -= 1
    if end == start or not weights[start:end].all():
        raise SystemExit("an answer is not in the loss as a whole: the peers would train other tokens")
    return slice(start, end)


def write_rows(settings: dict, rows: Iterable[dict]) -> dict:
    Path(settings["tokens"]).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {}


def common_settings(settings: dict) -> list[str]:
    """What a run is told whatever its method."""
    return [
        f"model.path={settings['model']}",
        f"model.dtype={settings['dtype']}",
        f"data.train={settings['data']}",
        f"data.max_length={settings['max_length']}",
        "data.shuffle=false",
        f"train.optimizer.lr={settings['lr']}",
        "train.optimizer.weight_decay=0",
        "train.schedule.name=constant",
        "train.schedule.warmup=0",
        "train.clip_norm=1.0",
        f"train.seed={settings['seed']}",
        f"train.threads={settings['threads']}",
        f"run.folder={settings['folder']}",
        "run.name=bench",
    ]


def adapter_settings(settings: dict) -> list[str]:
    return [
        f"model.adapter.rank={settings['rank']}",
        f"model.adapter.alpha={settings['alpha']}",
        f"model.adapter_path={settings['adapter']}",
    ]


def run(settings: dict, recipe: str, words: list[str]) -> dict:
    """`tunesmith train RECIPE WORDS`, in this process."""
    from tunesmith.__main__ import limit_kernels, main

    limit_kernels()  # as the command does, before the imports below
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(settings["threads"])
    baseline = memory_peak()
    clock = Clock(Path(settings["folder"]) / "bench" / "metrics.jsonl")
    clock.start()
    sys.argv = ["tunesmith", "train", recipe, *common_settings(settings), *words, "--yes", "--json"]
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
