"""SFT with LoRA on SmolLM2-135M: `tunesmith train` against TRL; same tokens, same steps, same losses."""

import argparse
import datetime
import hashlib
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from common import environments, machine
from common.process import environment, run_side
from common.sides import TORCH, Side, alternate, starter

HERE = Path(__file__).parent
WORK = {"rank": 8, "alpha": 16, "lr": 2e-4, "max_length": 1024, "seed": 0, "sequences": 16}
TOLERANCE = 1e-3  # largest difference of the first loss between two sides in fp32; bf16 rounding alone makes more
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "tokenizers", "numpy")
FIGURES = (
    "tokens_per_second",
    "scored_tokens_per_second",
    "tokens_per_cpu_second",
    "peak_bytes",
    "peak_less_import_bytes",
)


def main() -> None:
    choices = parse()
    model = str(choices.model or starter())
    with tempfile.TemporaryDirectory() as folder:
        shared = {
            **WORK,
            "model": model,
            "data": str(choices.data.resolve()),
            "tokens": f"{folder}/tokens.jsonl",
            "adapter": f"{folder}/adapter",
            "steps": choices.warmup + choices.steps,
            "examples": (choices.warmup + choices.steps) * WORK["sequences"],
            "threads": choices.threads,
            "dtype": choices.dtype,
        }
        sides = make_sides(environments.python_of("trl", TORCH))
        run_side(sys.executable, "tunesmith_sft.py", {**shared, "task": "tokens"})
        run_side(sides[-1].python, "trl_sft.py", {**shared, "task": "adapter"})
        steps = count_tokens(Path(shared["tokens"]))
        proof = prove_equal_work(sides[:2], shared)
        busy = measure(sides, shared, steps, choices)
        digest = hashlib.sha256(Path(shared["tokens"]).read_bytes()).hexdigest()
    notes = {"busy_cores_before": busy, "tokens_sha256": digest, "first_loss_float32": proof}
    save(summarise(sides, steps, choices, notes), choices)


def prove_equal_work(sides: list[Side], shared: dict) -> dict[str, float]:
    """The first step's loss of each side in fp32, where rounding hides nothing; they must agree to TOLERANCE."""
    losses = {}
    for side in sides:
        settings = {**shared, **side.settings, "task": "train", "dtype": "float32", "steps": 1}
        losses[side.name] = run_side(side.python, side.script, settings)["losses"][0]
    if max(losses.values()) - min(losses.values()) > TOLERANCE:
        raise SystemExit(f"the losses differ by more than {TOLERANCE}: the sides do not do the same work: {losses}")
    return losses


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="alpaca_en_demo.jsonl, or any file Tunesmith reads")
    parser.add_argument("--model", type=Path, help="folder of SmolLM2-135M-Instruct; the starter model when left out")
    parser.add_argument("--warmup", type=int, default=1, help="steps left out of every figure but the losses")
    parser.add_argument("--steps", type=int, default=3, help="measured steps")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="base and computation")
    parser.add_argument("--only", nargs="*", help="names of the sides to run")
    parser.add_argument("--allow-load", action="store_true", help="measure although other processes are at work")
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of a table")
    choices = parser.parse_args()
    if choices.warmup < 1:
        parser.error("--warmup: at least one step, the clock starts at its end")
    return choices


def make_sides(trl: Path) -> list[Side]:
    default = {"batch": 4, "accumulation": 4, "checkpointing": True, "sort_within_step": False}
    best = {**default, "checkpointing": False, "sort_within_step": True}
    return [
        Side("tunesmith", sys.executable, "tunesmith_sft.py"),
        Side("trl default", trl, "trl_sft.py", default),
        Side("trl best", trl, "trl_sft.py", best),
    ]


def count_tokens(path: Path) -> list[tuple[int, int]]:
    """Tokens and scored tokens of every step."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    size = WORK["sequences"]
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [
        (sum(len(row["tokens"]) for row in group), sum(sum(map(bool, row["weights"])) for row in group))
        for group in groups
    ]


def measure(sides: list[Side], shared: dict, steps: list[tuple[int, int]], choices: argparse.Namespace) -> list[float]:
    """Run the sides in turn; returns how busy the machine was before each run."""

    def run(side: Side) -> dict:
        result = run_side(side.python, side.script, {**shared, **side.settings, "task": "train"})
        return figures(result, steps, choices.warmup)

    wanted = [side for side in sides if not choices.only or side.name in choices.only]
    return list(alternate(wanted, choices.repeats, choices.allow_load, run))


def figures(result: dict, steps: list[tuple[int, int]], warmup: int) -> dict:
    """Rates over the measured steps, from the end of the last warm-up step to the end of the last step."""
    ends = result["ends"][-len(steps) :]  # a side may also mark the start
    (first, first_cpu), (last, last_cpu) = ends[warmup - 1], ends[-1]
    tokens, scored = (sum(step[part] for step in steps[warmup:]) for part in (0, 1))
    return {
        **{key: value for key, value in result.items() if key != "ends"},
        "tokens_per_second": tokens / (last - first),
        "scored_tokens_per_second": scored / (last - first),
        "tokens_per_cpu_second": tokens / (last_cpu - first_cpu),
        "step_seconds": [now[0] - then[0] for then, now in zip(ends[warmup - 1 :], ends[warmup:], strict=False)],
        "peak_less_import_bytes": result["peak_bytes"] - result["import_bytes"],
    }


def summarise(sides: list[Side], steps: list[tuple[int, int]], choices: argparse.Namespace, notes: dict) -> dict:
    measured = [side for side in sides if side.runs]
    medians = {
        side.name: {key: statistics.median(run[key] for run in side.runs) for key in FIGURES} for side in measured
    }
    ours = medians.get("tunesmith")
    ratios = {
        name: {key: ours[key] / other[key] for key in FIGURES}
        for name, other in medians.items()
        if ours and name != "tunesmith"
    }
    losses = [run["losses"] for side in measured for run in side.runs]
    return {
        "schema": 1,
        "benchmark": "sft",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": machine.commit(HERE.parent),
        "machine": machine.describe(),
        "work": {
            **WORK,
            "data": choices.data.name,
            "model": "SmolLM2-135M-Instruct",
            "dtype": choices.dtype,
            "adapter_dtype": "float32",
            "targets": "q k v o gate up down",
            "optimizer": "AdamW (fused), constant rate, no decay, clipping at 1.0",
            "warmup": choices.warmup,
            "steps": choices.steps,
            "repeats": choices.repeats,
            "threads": choices.threads,
            "tokens_per_step": [tokens for tokens, _ in steps],
            "scored_per_step": [scored for _, scored in steps],
        },
        "environment": environment(choices.threads),
        "load_allowed": choices.allow_load,
        **notes,
        "sides": {
            side.name: {
                "settings": side.settings,
                "versions": environments.versions(side.python, PACKAGES),
                "median": medians[side.name],
                "runs": side.runs,
            }
            for side in measured
        },
        "ratios": ratios,
        "loss": {
            "tolerance": TOLERANCE,
            "first": {side.name: side.runs[0]["losses"][0] for side in measured},
            "largest_difference": max(max(step) - min(step) for step in zip(*losses, strict=True)),
        },
    }


def save(report: dict, choices: argparse.Namespace) -> None:
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    ending = "" if choices.dtype == "bfloat16" else f"-{choices.dtype}"
    path = folder / f"sft-{report['date'][:10]}{ending}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    if choices.json:
        print(json.dumps(report))
    else:
        show(report)
    print(f"written to {os.path.relpath(path)}", file=sys.stderr)


def show(report: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="SmolLM2-135M, LoRA r8, 16 sequences per step: medians")
    for heading in ("side", "tok/s", "scored", "per CPU-s", "GiB", "less imports", "first loss", "speed", "memory"):
        table.add_column(heading, justify="left" if heading == "side" else "right")
    for name, side in report["sides"].items():
        median, ratio = side["median"], report["ratios"].get(name)
        table.add_row(
            name,
            f"{median['tokens_per_second']:.0f}",
            f"{median['scored_tokens_per_second']:.0f}",
            f"{median['tokens_per_cpu_second']:.0f}",
            f"{median['peak_bytes'] / 2**30:.2f}",
            f"{median['peak_less_import_bytes'] / 2**30:.2f}",
            f"{report['loss']['first'][name]:.4f}",
            f"{ratio['tokens_per_second']:.2f}x" if ratio else "",
            f"{ratio['peak_bytes']:.2f}x" if ratio else "",
        )
    Console().print(table)
    Console().print("speed, memory: tunesmith divided by that row; scored: scored tokens per second")
    first = ", ".join(f"{name} {loss:.6f}" for name, loss in report["first_loss_float32"].items())
    Console().print(f"the same work, proven by the first loss in fp32: {first}")
    Console().print(
        f"largest difference of a step's loss in {report['work']['dtype']}: {report['loss']['largest_difference']:.1e}"
    )


if __name__ == "__main__":
    main()
