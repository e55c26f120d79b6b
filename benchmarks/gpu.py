"""LoRA fine-tuning on one GPU: Tunesmith's step against TRL and Unsloth, on random weights in the shapes of models."""

import argparse
import datetime
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from common import machine
from common.gpu_work import SHAPES, TINY, Shape, tokens_per_step

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src"
ORDER = ("Llama-3.1-8B", "Qwen3-0.6B", "Llama-3.2-1B", "Qwen3-4B")  # the most telling first: time may run out
WORK = {"rank": 16, "alpha": 32, "lr": 2e-4, "seed": 0}
PEAKS = {"H200": 790.0}  # TFLOP/s of bf16 matmuls on random data, measured; a share of it is the MFU
END = 15  # seconds kept for the table; a side that has not ended by then is stopped
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "UNSLOTH_COMPILE_USE_TEMP": "1",
}
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "UNSLOTH_FORCE_CPU": "1", "UNSLOTH_CPU_COMPILE": "0"}


@dataclass(frozen=True)
class Process:
    """One process: a side with one way of holding the frozen weights, and the rows it trains of one model."""

    side: str
    name: str
    base: str = "bf16"
    checkpointing: bool = False
    liger: bool = False
    option: dict = field(default_factory=dict)  # of `model`
    fp8: dict | None = None  # `train.fp8`

    def rows(self, lengths: list[int], tokens: int) -> list[dict]:
        return [
            {
                "side": self.side,
                "row": self.name,
                "base": self.base,
                "length": length,
                "documents": tokens // length,
                "tokens_per_step": tokens,
                "checkpointing": self.checkpointing,
                "liger": self.liger,
            }
            for length in lengths
        ]


FULL = {"adapter": {"method": "full"}}
OWN = (
    Process("tunesmith", "default"),
    Process("tunesmith", "fp8", "fp8", option={"base_products": "fp8"}),
    Process("tunesmith", "nf4", "nf4", option={"quantization": {"name": "nf4"}}),
    Process("tunesmith", "full", option=FULL),
    Process("tunesmith", "full, fp8 by row", option=FULL, fp8={"scaling": "rowwise"}),
    Process("tunesmith", "full, fp8 by tensor", option=FULL, fp8={"scaling": "tensorwise"}),
)
PEERS = (
    Process("trl", "best"),
    Process("unsloth", "best"),
    Process("trl", "best, liger", liger=True),
    Process("unsloth", "default", checkpointing=True),
    Process("trl", "default", checkpointing=True),
)


def main() -> None:
    choices = parse()
    started = time.time()
    deadline = started + choices.budget_seconds - END
    device = describe_device(choices)
    rows: list[dict] = []
    for model, shape in shapes(choices).items():
        tokens = tokens_per_step(shape, choices.lengths, choices.tokens, device["memory"])
        for row in run_model(model, shape, tokens, deadline, choices):
            finish(row, shape, device["peak_tflops"], choices)
            rows.append(row)
            if "skipped" not in row:
                print(line_of(row), flush=True)
    save(rows, device, started, choices)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, help="folder that wheels.py has unpacked to")
    parser.add_argument("--models", nargs="*", choices=ORDER, default=list(ORDER))
    parser.add_argument("--lengths", nargs="*", type=int, help="tokens per document; 2048 512 8192 when left out")
    parser.add_argument("--sides", nargs="*", choices=("tunesmith", "trl", "unsloth"), help="all when left out")
    parser.add_argument("--tokens", type=int, default=32768, help="most tokens per step; memory may allow fewer")
    parser.add_argument("--scored", type=float, default=1.0, help="share of each document that the loss reads")
    parser.add_argument("--warmup", type=int, default=3, help="steps left out of the median")
    parser.add_argument("--steps", type=int, default=10, help="measured steps")
    parser.add_argument("--budget-seconds", type=float, default=540, help="rows that would begin later are skipped")
    parser.add_argument("--peak-tflops", type=float, help="the device's rate of bf16 matmuls, for the MFU")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: does the program run?")
    parser.add_argument("--out", type=Path, help="the JSON file; benchmarks/results/gpu-DATE.json when left out")
    choices = parser.parse_args()
    if choices.device == "cpu" and not choices.tiny:
        parser.error("--device cpu is for --tiny only: nothing else would end in time")
    if choices.tiny:
        choices.tokens = min(choices.tokens, 256)
    choices.lengths = choices.lengths or ([32, 16, 64] if choices.tiny else [2048, 512, 8192])
    choices.peers = choices.peers.resolve() if choices.peers else None
    return choices


def shapes(choices: argparse.Namespace) -> dict[str, Shape]:
    return TINY if choices.tiny else {name: SHAPES[name] for name in ORDER if name in choices.models}


def describe_device(choices: argparse.Namespace) -> dict:
    """Name, bytes of memory, and the rate of its matmuls where it is known."""
    if choices.device == "cpu":
        return {"name": machine.describe()["cpu"], "memory": None, "peak_tflops": choices.peak_tflops}
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"no NVIDIA GPU here ({error}); --device cpu --tiny tries the program without one") from error
    name, memory, driver = (part.strip() for part in found.splitlines()[0].split(","))
    peak = choices.peak_tflops or next((rate for part, rate in PEAKS.items() if part in name), None)
    return {"name": name, "memory": int(memory) * 2**20, "driver": driver, "peak_tflops": peak}


def run_model(model: str, shape: Shape, tokens: int, deadline: float, choices: argparse.Namespace) -> Iterator[dict]:
    """Every row of one model, measured or with the reason why not; its weights are written once, for all sides."""
    given = {
        **WORK,
        "device": choices.device,
        "dtype": "float32" if choices.device == "cpu" else "bfloat16",
        "config": shape.config(),
        "vocabulary": shape.vocab_size,
        "scored": choices.scored,
        "warmup": choices.warmup,
        "steps": choices.steps,
        "deadline": deadline,
    }
    with tempfile.TemporaryDirectory(dir=roomy_folder(3 * shape.parameters)) as folder:
        given["model"] = f"{folder}/model"
        written = None if time.time() > deadline else run_side("tunesmith", "gpu_model.py", given, choices)
        for process in processes(choices):
            wanted = process.rows(choices.lengths, tokens)
            reason = cannot(process, deadline, choices) or written
            done = [] if reason else read_rows(process, {**given, "rows": wanted}, folder, choices)
            done += [{**row, "skipped": reason or "out of time"} for row in wanted[len(done) :]]
            yield from ({"model": model, **row} for row in done)


def processes(choices: argparse.Namespace) -> Iterator[Process]:
    wanted = choices.sides or ("tunesmith", "trl", "unsloth")
    yield from (process for process in (*OWN, *PEERS) if process.side in wanted)


def cannot(process: Process, deadline: float, choices: argparse.Namespace) -> str | None:
    """Why the process is not begun."""
    if "fp8" in process.name and choices.device == "cpu":
        return "products in fp8 are for GPUs"
    if process.side != "tunesmith" and not (choices.peers and carried(process.side, choices)[0].is_dir()):
        return "not installed: see --peers"
    if process.liger and not any((folder / "liger_kernel").is_dir() for folder in carried(process.side, choices)):
        return "not installed: liger_kernel"
    return "out of time" if time.time() > deadline else None


def read_rows(process: Process, given: dict, folder: str, choices: argparse.Namespace) -> list[dict]:
    """The rows that the process has written; after a failure the next one carries the end of its output."""
    out = Path(folder) / "rows.jsonl"
    out.unlink(missing_ok=True)
    failed = run_side(
        process.side,
        f"{process.side}_gpu.py",
        {**given, "out": str(out), "option": process.option, "fp8": process.fp8},
        choices,
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    if failed and len(rows) < len(given["rows"]):
        rows += [{**row, "skipped": failed} for row in given["rows"][len(rows) :]]
    return rows


def run_side(side: str, script: str, given: dict, choices: argparse.Namespace) -> str | None:
    """Run one process to its end; returns what went wrong."""
    environment = {**os.environ, **ENVIRONMENT, **(ON_CPU if choices.device == "cpu" else {})}
    environment["PYTHONPATH"] = python_path(side, choices)
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "settings.json"
        settings.write_text(json.dumps(given))
        try:
            subprocess.run(
                [sys.executable, HERE / "sides" / script, settings],
                env=environment,
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=True,
                timeout=max(1.0, given["deadline"] - time.time() + END / 2),
            )
        except subprocess.TimeoutExpired:
            return "out of time"
        except subprocess.CalledProcessError as error:
            print(f"{script} failed:\n{error.stdout[-3000:]}", file=sys.stderr)
            return f"failed: {error.stdout.strip().splitlines()[-1][:300] if error.stdout.strip() else error}"
    return None


def python_path(side: str, choices: argparse.Namespace) -> str:
    """Tunesmith's sources or a peer's packages, and what `--peers` holds for that side."""
    own = [str(SOURCE)] if side == "tunesmith" else []
    return os.pathsep.join([*own, *map(str, carried(side, choices)), *filter(None, [os.environ.get("PYTHONPATH")])])


def carried(side: str, choices: argparse.Namespace) -> list[Path]:
    """Folders of packages for one side; peers share some.

    The name matters: what dill finds elsewhere it takes for the user's own code, and pickles whole modules.
    """
    names = () if not choices.peers else (side,) if side == "tunesmith" else (side, "common")
    return [choices.peers / name / "site-packages" for name in names]


def roomy_folder(needed: int) -> str | None:
    """Memory when it has room for the weights, else the usual place of temporary files."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() and shutil.disk_usage(shared).free > needed else None


def finish(row: dict, shape: Shape, peak_tflops: float | None, choices: argparse.Namespace) -> None:
    """Rates from the median of the measured steps."""
    if "skipped" in row:
        return
    ends = row.pop("ends")
    seconds = [end - start for start, end in itertools.pairwise(ends)]
    step = statistics.median(seconds[choices.warmup :])
    if row["row"].startswith("full"):
        flops = shape.full_flops_per_token(row["length"], choices.scored)
    else:
        flops = shape.flops_per_token(row["length"], WORK["rank"], choices.scored)
    row["step_seconds"] = seconds
    row["tokens_per_second"] = row["tokens_per_step"] / step
    row["gflop_per_token"] = flops / 1e9
    row["mfu"] = row["tokens_per_second"] * flops / (peak_tflops * 1e12) if peak_tflops else None
    row["first_step_seconds"] = seconds[0]


HEADINGS = (
    f"{'model':<14} {'side':<10} {'row':<12} {'length':>6} {'tokens':>6} {'tok/s':>9} {'MFU':>6} "
    f"{'GiB':>6} {'reserved':>8} {'loss':>8}"
)


def line_of(row: dict) -> str:
    start = f"{row['model']:<14} {row['side']:<10} {row['row']:<12} {row['length']:>6} {row['tokens_per_step']:>6} "
    memory = [f"{row[key] / 2**30:.1f}" if row[key] else "-" for key in ("peak_allocated", "peak_reserved")]
    mfu = f"{row['mfu']:.1%}" if row["mfu"] else "-"
    rate = f"{row['tokens_per_second']:>9,.0f} {mfu:>6} {memory[0]:>6} {memory[1]:>8} {row['losses'][0]:>8.4f}"
    once = "" if row["documents_at_once"] == row["documents"] else f"  {row['documents_at_once']} documents at once"
    return start + rate + once


def skipped_lines(rows: list[dict]) -> Iterator[str]:
    """What was not measured, and why; rows that differ in length alone share a line."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        if "skipped" in row:
            groups.setdefault((row["model"], row["side"], row["row"], row["skipped"]), []).append(row["length"])
    for (model, side, name, reason), lengths in groups.items():
        yield f"{model:<14} {side:<10} {name:<12} {', '.join(map(str, lengths))}: {reason}"


def comparisons(rows: list[dict]) -> list[dict]:
    """Tunesmith's default divided by every peer's row of the same model and length, and how far their losses part."""
    done = [row for row in rows if "skipped" not in row]
    ours = {(row["model"], row["length"]): row for row in done if (row["side"], row["row"]) == ("tunesmith", "default")}
    found = []
    for row in done:
        own = ours.get((row["model"], row["length"]))
        if own is None or row["side"] == "tunesmith":
            continue
        memory = own["peak_allocated"] / row["peak_allocated"] if row["peak_allocated"] else None
        apart = [abs(one - other) for one, other in zip(own["losses"], row["losses"], strict=True)]
        found.append(
            {key: row[key] for key in ("model", "length", "side", "row")}
            | {"speed": own["tokens_per_second"] / row["tokens_per_second"], "memory": memory}
            | {"first_loss_difference": apart[0], "largest_loss_difference": max(apart)}
        )
    return found


def commit() -> str:
    try:
        return machine.commit(HERE.parent) or "unknown"
    except OSError:
        return "unknown"


def save(rows: list[dict], device: dict, started: float, choices: argparse.Namespace) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    path = choices.out or HERE / "results" / f"gpu-{now[:10]}{'-tiny' if choices.tiny else ''}.json"
    report = {
        "schema": 1,
        "benchmark": "gpu",
        "date": now,
        "commit": commit(),
        "machine": machine.describe(),
        "device": device,
        "work": {**WORK, "lengths": choices.lengths, "scored": choices.scored, "tiny": choices.tiny}
        | {"warmup": choices.warmup, "steps": choices.steps, "adapter_dtype": "float32"}
        | {"optimizer": "AdamW (fused), constant rate, no decay, clipping at 1.0"},
        "environment": ENVIRONMENT,
        "seconds": time.time() - started,
        "rows": rows,
        "comparisons": comparisons(rows),
    }
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{HEADINGS}")
    print("\n".join(line_of(row) for row in rows if "skipped" not in row))
    print("\n".join(skipped_lines(rows)))
    for found in report["comparisons"]:
        memory = f", {found['memory']:.2f}x the memory" if found["memory"] else ""
        print(
            f"{found['model']} at {found['length']}: {found['speed']:.2f}x {found['side']} {found['row']}{memory}; "
            f"losses differ by {found['first_loss_difference']:.1e}, {found['largest_loss_difference']:.1e} at most"
        )
    print(f"{report['seconds']:.0f} s; written to {path}")


if __name__ == "__main__":
    main()
