"""Preferences with LoRA on SmolLM2-135M: `tunesmith train` against TRL and LLaMA-Factory; same pairs, steps, losses."""

import argparse
import datetime
import hashlib
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
from pathlib import Path

from common import environments, machine
from common.pairs import draw_pairs, read_lines, read_pairs, records_of, write_lines
from common.process import environment, run_side
from common.sides import TORCH, Side, alternate, starter

HERE = Path(__file__).parent
WORK = {"rank": 8, "alpha": 16, "lr": 1e-4, "beta": 0.1, "max_length": 2048, "seed": 0}
TOLERANCE = 1e-4  # largest difference of a loss of the first two steps between sides in fp32
START = {"dpo": math.log(2), "kto": 0.5}  # the loss of a policy that equals its reference
PEERS = {"dpo": ("trl", "llamafactory"), "kto": ("trl",), "orpo": ("llamafactory",)}
SCRIPTS = {"trl": "trl_preference.py", "llamafactory": "llamafactory_preference.py"}
NAMES = {"trl": "trl", "llamafactory": "llama-factory"}
STEPS = {"short": 6, "long": 1}  # per epoch
PROOF_PAIRS = {"short": 4, "long": 1}  # pairs a step of the fp32 proof
DEVICE_BATCH_LONG = {"dpo": 1, "orpo": 1, "kto": 2}  # records; TRL's KTO needs another prompt in each batch
PACKAGES = ("torch", "transformers", "peft", "trl", "llamafactory", "accelerate", "datasets", "tokenizers", "numpy")
FIGURES = (
    "tokens_per_second",
    "pairs_per_second",
    "cpu_seconds_per_pair",
    "tokens_per_cpu_second",
    "first_epoch_tokens_per_second",
    "later_epochs_tokens_per_second",
    "peak_bytes",
    "peak_less_import_bytes",
)


def main() -> None:
    choices = parse()
    sides = make_sides(choices)
    with tempfile.TemporaryDirectory() as folder:
        shared = settings_of(choices, folder)
        peer = environments.python_of("trl", TORCH)  # PEFT of one version writes the adapter that all sides start from
        write_records(choices, shared)
        run_side(sys.executable, "tunesmith_preference.py", {**shared, "task": "tokens"})
        run_side(peer, "trl_preference.py", {**shared, "task": "adapter"})
        rows = read_lines(Path(shared["tokens"]))
        proof = {} if choices.no_proof else prove_equal_work(sides, shared, choices)

        def run(side: Side) -> dict:
            result = run_side(side.python, side.script, {**shared, **side.settings, "task": "train"})
            return figures(result, rows, choices)

        busy = list(alternate(sides, choices.repeats, choices.allow_load, run))
        digest = hashlib.sha256(Path(shared["tokens"]).read_bytes()).hexdigest()
    notes = {"busy_cores_before": busy, "tokens_sha256": digest, "first_losses_float32": proof}
    save(summarise(sides, rows, choices, notes), choices)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=tuple(PEERS), default="dpo")
    parser.add_argument(
        "--work", choices=("short", "long"), default="short", help="long: shared prompts of 1,000 tokens"
    )
    parser.add_argument("--data", type=Path, help="instruction, input, chosen, rejected as jsonl; for --work short")
    parser.add_argument("--model", type=Path, help="folder of SmolLM2-135M-Instruct; the starter model when left out")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument(
        "--steps", type=int, help=f"per epoch; {STEPS['short']} short, {STEPS['long']} long when left out"
    )
    parser.add_argument("--pairs", type=int, default=16, help="pairs a step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="base and computation")
    parser.add_argument("--only", nargs="*", help="names of the sides to run")
    parser.add_argument("--no-proof", action="store_true", help="measure without proving equal work in fp32 first")
    parser.add_argument("--allow-load", action="store_true", help="measure although other processes are at work")
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of a table")
    choices = parser.parse_args()
    choices.steps = choices.steps or STEPS[choices.work]
    if choices.pairs % 4:
        parser.error("--pairs: a multiple of 4, which is what a peer's device batch holds")
    if choices.data is not None and not choices.data.exists():
        print(f"skipped {choices.data}: it does not exist; drawn pairs are trained instead", file=sys.stderr)
        choices.data = None
    return choices


def settings_of(choices: argparse.Namespace, folder: str) -> dict:
    """What every side is told; `records` are those of a step, two for a pair of KTO."""
    return {
        **WORK,
        "method": choices.method,
        "model": str(choices.model or starter()),
        "data": f"{folder}/data.jsonl",
        "tokens": f"{folder}/tokens.jsonl",
        "adapter": f"{folder}/adapter",
        "records": records_per_step(choices),
        "steps": choices.steps,
        "epochs": choices.epochs,
        "threads": choices.threads,
        "dtype": choices.dtype,
    }


def records_per_step(choices: argparse.Namespace) -> int:
    return choices.pairs * (2 if choices.method == "kto" else 1)


def write_records(choices: argparse.Namespace, shared: dict) -> None:
    count = choices.steps * choices.pairs
    if choices.work == "short" and choices.data is not None:
        pairs = read_pairs(choices.data, count)
    else:
        pairs = draw_pairs(choices.work, count, WORK["seed"])
    write_lines(Path(shared["data"]), records_of(pairs, choices.method, choices.pairs))


def make_sides(choices: argparse.Namespace) -> list[Side]:
    """Ours as it comes, and two rows of each peer: as it comes, and with the best that it offers on a CPU.

    Device batches are the fastest measured on 2 cores. Reference log-probabilities are computed beforehand where that
    saves a pass, from the second epoch on; LLaMA-Factory has nothing of the kind.
    """
    sides = [Side("tunesmith", sys.executable, "tunesmith_preference.py")]
    for peer in PEERS[choices.method]:
        records = records_per_step(choices)
        batch = 4 if choices.work == "short" else DEVICE_BATCH_LONG[choices.method]
        default = {
            "batch": batch,
            "accumulation": records // batch,
            "checkpointing": True,
            "sort_within_step": False,
            "precompute": False,
        }
        best = {
            **default,
            "checkpointing": False,
            "sort_within_step": True,
            "precompute": peer == "trl" and choices.epochs > 1,
        }
        python = environments.python_of(peer, TORCH)
        sides.append(Side(f"{NAMES[peer]} default", python, SCRIPTS[peer], default))
        sides.append(Side(f"{NAMES[peer]} best", python, SCRIPTS[peer], best))
    return [side for side in sides if not choices.only or side.name in choices.only]


def prove_equal_work(sides: list[Side], shared: dict, choices: argparse.Namespace) -> dict[str, list[float]]:
    """The losses of two small steps of each program in fp32, where rounding hides nothing; they agree to TOLERANCE.

    The second loss shows that gradients and updates agree as well.
    """
    pairs = PROOF_PAIRS[choices.work]
    records = pairs * (2 if choices.method == "kto" else 1)
    small = {"dtype": "float32", "steps": 2, "epochs": 1, "records": records, "batch": records, "accumulation": 1}
    data = f"{shared['data']}.proof.jsonl"
    lines = Path(shared["data"]).read_text(encoding="utf-8").splitlines(keepends=True)
    Path(data).write_text("".join(lines[: 2 * records]), encoding="utf-8")
    losses = {}
    for side in {side.script: side for side in sides}.values():
        given = {**shared, **side.settings, **small, "data": data, "task": "train"}
        losses[side.name] = run_side(side.python, side.script, given)["losses"]
    for step, found in enumerate(zip(*losses.values(), strict=True)):
        if max(found) - min(found) > TOLERANCE:
            raise SystemExit(f"the losses of step {step} differ by more than {TOLERANCE}: not the same work: {losses}")
    wanted = START.get(choices.method)
    if wanted is not None and any(abs(found[0] - wanted) > TOLERANCE for found in losses.values()):
        raise SystemExit(f"the first loss is not {wanted:.4f}: a policy differs from its reference: {losses}")
    return losses


def figures(result: dict, rows: list[dict], choices: argparse.Namespace) -> dict:
    """Rates from the first forward pass, of the reference or of the policy, to the end of the last step.

    Tokens are counted as the peers compute them: the prompt once for each answer, on every side.
    """
    ends = result["ends"]
    if len(ends) != choices.epochs * choices.steps + 1:
        raise SystemExit(f"{len(ends) - 1} steps were taken, not {choices.epochs * choices.steps}")
    tokens = sum(len(row["prompt"]) + len(answer) for row in rows for answer in row["answers"])
    pairs = choices.epochs * choices.steps * choices.pairs
    marks = [ends[epoch * choices.steps] for epoch in range(choices.epochs + 1)]
    (start, start_cpu), (first, _), (last, last_cpu) = marks[0], marks[1], marks[-1]
    later = (choices.epochs - 1) * tokens / (last - first) if choices.epochs > 1 else tokens / (first - start)
    return {
        **{key: value for key, value in result.items() if key != "ends"},
        "tokens_per_second": choices.epochs * tokens / (last - start),
        "pairs_per_second": pairs / (last - start),
        "cpu_seconds_per_pair": (last_cpu - start_cpu) / pairs,
        "tokens_per_cpu_second": choices.epochs * tokens / (last_cpu - start_cpu),
        "first_epoch_tokens_per_second": tokens / (first - start),
        "later_epochs_tokens_per_second": later,
        "step_seconds": [now[0] - then[0] for then, now in itertools.pairwise(ends)],
        "peak_less_import_bytes": result["peak_bytes"] - result["import_bytes"],
    }


def summarise(sides: list[Side], rows: list[dict], choices: argparse.Namespace, notes: dict) -> dict:
    medians = {side.name: {key: statistics.median(run[key] for run in side.runs) for key in FIGURES} for side in sides}
    ours = medians.get("tunesmith")
    ratios = {
        name: {key: ours[key] / other[key] for key in FIGURES}
        for name, other in medians.items()
        if ours and name != "tunesmith"
    }
    losses = [run["losses"] for side in sides for run in side.runs]
    return {
        "schema": 1,
        "benchmark": "preference",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": machine.commit(HERE.parent),
        "machine": machine.describe(),
        "work": describe_work(rows, choices),
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
            for side in sides
        },
        "ratios": ratios,
        "loss": {
            "tolerance": TOLERANCE,
            "first": {side.name: side.runs[0]["losses"][0] for side in sides},
            "last": {side.name: side.runs[0]["losses"][-1] for side in sides},
            "largest_difference": max(max(step) - min(step) for step in zip(*losses, strict=True)),
        },
    }


def describe_work(rows: list[dict], choices: argparse.Namespace) -> dict:
    answers = [answer for row in rows for answer in row["answers"]]
    return {
        **WORK,
        "method": choices.method,
        "work": choices.work,
        "data": choices.data.name if choices.data is not None and choices.work == "short" else "drawn",
        "model": "SmolLM2-135M-Instruct",
        "dtype": choices.dtype,
        "adapter_dtype": "float32",
        "targets": "q k v o gate up down",
        "optimizer": "AdamW (fused), constant rate, no decay, clipping at 1.0",
        "pairs_per_step": choices.pairs,
        "steps_per_epoch": choices.steps,
        "epochs": choices.epochs,
        "repeats": choices.repeats,
        "threads": choices.threads,
        "tokens_per_epoch": sum(len(row["prompt"]) + len(answer) for row in rows for answer in row["answers"]),
        "prompt_tokens": round(statistics.mean(len(row["prompt"]) for row in rows), 1),
        "answer_tokens": round(statistics.mean(len(answer) for answer in answers), 1),
    }


def save(report: dict, choices: argparse.Namespace) -> None:
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    ending = "" if choices.dtype == "bfloat16" else f"-{choices.dtype}"
    name = f"preference-{choices.method}-{choices.work}-{choices.epochs}e-{report['date'][:10]}{ending}.json"
    path = folder / name
    path.write_text(json.dumps(report, indent=1) + "\n")
    if choices.json:
        print(json.dumps(report))
    else:
        show(report)
    print(f"written to {os.path.relpath(path)}", file=sys.stderr)


def show(report: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    work = report["work"]
    title = f"{work['method']}, {work['work']} prompts, {work['epochs']} epochs, {work['pairs_per_step']} pairs a step"
    table = Table(title=f"SmolLM2-135M, LoRA r8, {title}: medians")
    for heading in ("side", "tok/s", "1st epoch", "later", "CPU-s/pair", "GiB", "first loss", "speed", "memory"):
        table.add_column(heading, justify="left" if heading == "side" else "right", no_wrap=True)
    for name, side in report["sides"].items():
        median, ratio = side["median"], report["ratios"].get(name)
        table.add_row(
            name,
            f"{median['tokens_per_second']:.0f}",
            f"{median['first_epoch_tokens_per_second']:.0f}",
            f"{median['later_epochs_tokens_per_second']:.0f}",
            f"{median['cpu_seconds_per_pair']:.2f}",
            f"{median['peak_bytes'] / 2**30:.2f}",
            f"{report['loss']['first'][name]:.4f}",
            f"{ratio['tokens_per_second']:.2f}x" if ratio else "",
            f"{ratio['peak_bytes']:.2f}x" if ratio else "",
        )
    console = Console(width=110)
    console.print(table)
    console.print("tok/s counts the prompt once for each answer; speed, memory: tunesmith divided by that row")
    for name, losses in report["first_losses_float32"].items():
        console.print(f"the same work, proven in fp32: {name} " + ", ".join(f"{loss:.6f}" for loss in losses))
    Console().print(
        f"largest difference of a step's loss in {work['dtype']}: {report['loss']['largest_difference']:.1e}"
    )


if __name__ == "__main__":
    main()
