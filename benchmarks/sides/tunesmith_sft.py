"""One measured run of `tunesmith train`; started by sft.py in Tunesmith's environment with a JSON file of settings."""

import json
import sys
import threading
import time
from pathlib import Path

from memory import memory_peak


class Clock(threading.Thread):
    """Wall and processor time at every new row of metrics.jsonl, looked for every 10 ms; `ends[0]` is set by hand."""

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
        if not self.metrics.exists():
            return
        rows = [json.loads(line) for line in self.metrics.read_text().splitlines() if line.endswith("}")]
        rows = [row for row in rows if "train/loss" in row]
        now = (time.perf_counter(), time.process_time())
        self.ends += [now] * (len(rows) - len(self.rows))
        self.rows = rows


def write_tokens(settings: dict) -> dict:
    """The examples exactly as Tunesmith trains them, one JSON object a line; both sides train these tokens."""
    from tunesmith.data.config import DataConfig, SourceConfig
    from tunesmith.data.prepared import prepare
    from tunesmith.data.tokenizer import load_tokenizer

    data = DataConfig(max_length=settings["max_length"])
    prepared = prepare([SourceConfig(path=settings["data"])], data, load_tokenizer(Path(settings["model"])))
    if prepared.report.dropped:
        raise SystemExit(f"examples were dropped: {prepared.report.dropped}; raise max_length")
    rows = [prepared[index] for index in range(settings["examples"])]
    lines = [json.dumps({"tokens": row.tokens.tolist(), "weights": row.weights.tolist()}) + "\n" for row in rows]
    Path(settings["tokens"]).write_text("".join(lines))
    return {"key": prepared.key}


def overrides(settings: dict) -> list[str]:
    schedule = ["train.schedule.name=constant", "train.schedule.warmup=0", "train.clip_norm=1.0"]
    adapter = [f"model.adapter.rank={settings['rank']}", f"model.adapter.alpha={settings['alpha']}"]
    return [
        *schedule,
        *adapter,
        f"model.path={settings['model']}",
        f"model.dtype={settings['dtype']}",
        f"model.adapter_path={settings['adapter']}",
        f"data.train={settings['data']}",
        f"data.max_length={settings['max_length']}",
        "data.shuffle=false",
        f"train.steps={settings['steps']}",
        f"train.sequences_per_step={settings['sequences']}",
        f"train.optimizer.lr={settings['lr']}",
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
    clock = Clock(Path(settings["folder"]) / "bench" / "metrics.jsonl")
    clock.start()
    sys.argv = ["tunesmith", "train", "sft", *overrides(settings), "--yes", "--json"]
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
        "self_reported_step_seconds": [row["perf/step_s"] for row in clock.rows],
        "peak_bytes": memory_peak(),
        "import_bytes": baseline,
    }


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    done = write_tokens(given) if given["task"] == "tokens" else train(given)
    Path(given["out"]).write_text(json.dumps(done))
