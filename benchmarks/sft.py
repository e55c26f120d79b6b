"""SFT: `tunesmith train` against TRL, LLaMA-Factory, Unsloth and torchtune; same tokens, same steps, same losses."""

import argparse
import hashlib
import itertools
import sys
import tempfile
from pathlib import Path

from common import environments
from common.conversations import draw_records, read_records
from common.models import TITLES, model_folder
from common.options import add_options, existing, wanted
from common.pairs import read_lines, write_lines
from common.process import run_side
from common.proof import prove
from common.report import OURS, save, summarise
from common.sides import TORCH, Side, alternate
from common.tables import show

WORK = {"alpha": 16, "max_length": 2048, "seed": 0}
RANK = {"smollm2": 8, "qwen3-0.6b": 16}
RATE = {"lora": 2e-4, "full": 2e-5}
SEQUENCES = {  # of a step
    ("smollm2", "short"): 16,
    ("smollm2", "long"): 4,
    ("qwen3-0.6b", "short"): 8,
    ("qwen3-0.6b", "long"): 2,
}
DEVICE_BATCH = {"short": 4, "long": 1}
TOLERANCE = 1e-3  # largest difference of a loss between two programs in fp32; bf16 rounding alone makes more
PROOF = {"short": (2, 2), "long": (1, 1)}  # sequences of a device batch, and batches of a step, of the fp32 proof
PEERS = {"trl": "trl", "llamafactory": "llama-factory", "unsloth": "unsloth", "torchtune": "torchtune"}
CPU = {"UNSLOTH_FORCE_CPU": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "UNSLOTH_COMPILE_USE_TEMP": "1"}
FIGURES = (
    "tokens_per_second",
    "scored_tokens_per_second",
    "tokens_per_cpu_second",
    "cpu_seconds",
    "peak_bytes",
    "peak_less_import_bytes",
    "share_of_floor",
    "first_step_seconds",
)


def main() -> None:
    choices = parse()
    sides = make_sides(choices)
    with tempfile.TemporaryDirectory() as folder:
        shared = settings_of(choices, folder)
        write_lines(Path(shared["data"]), records(choices))
        run_side(sys.executable, "tunesmith_sft.py", {**shared, "task": "tokens"})
        if choices.tuning == "lora":  # PEFT of one version writes the adapter that all sides start from
            run_side(environments.python_of("trl", TORCH), "peft_adapter.py", shared)
        rows = read_lines(Path(shared["tokens"]))
        proof = {} if choices.no_proof else prove(sides, proof_settings(shared, choices), TOLERANCE)
        floor = measure_floor(rows, shared, choices)

        def run(side: Side) -> dict:
            return figures(side.train(shared), rows, floor, choices)

        busy = list(alternate(sides, choices.repeats, choices.allow_load, run))
        digest = hashlib.sha256(Path(shared["tokens"]).read_bytes()).hexdigest()
    notes = {"busy_cores_before": busy, "tokens_sha256": digest, "losses_float32": proof, "floor": floor}
    work = describe_work(rows, choices)
    report = summarise(
        "sft", sides, FIGURES, work, {"load_allowed": choices.allow_load, "tolerance": TOLERANCE, **notes}
    )
    name = f"sft-{choices.model}-{choices.tuning}-{choices.work}"
    save(report, choices.results, name, None if choices.json else show)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=tuple(RANK), default="smollm2")
    parser.add_argument("--tuning", choices=("lora", "full"), default="lora")
    parser.add_argument("--work", choices=("short", "long"), default="short", help="long: 2,048 tokens a sequence")
    parser.add_argument("--data", type=Path, help="records of one turn as jsonl, such as alpaca; for smollm2 and short")
    parser.add_argument("--folder", type=Path, help="folder of SmolLM2-135M-Instruct; the starter model when left out")
    parser.add_argument("--warmup", type=int, default=1, help="steps left out of every rate")
    parser.add_argument("--steps", type=int, default=3, help="measured steps")
    parser.add_argument("--sequences", type=int, help="of a step; by model and work when left out")
    parser.add_argument(
        "--row",
        nargs="+",
        action="append",
        default=[],
        metavar="WORD",
        help="another row of ours: its name, then settings",
    )
    add_options(parser)
    choices = parser.parse_args(words)
    if choices.warmup < 1:
        parser.error("--warmup: at least one step, the clock starts at its end")
    choices.sequences = choices.sequences or SEQUENCES[choices.model, choices.work]
    if choices.sequences % DEVICE_BATCH[choices.work]:
        parser.error(f"--sequences: a multiple of {DEVICE_BATCH[choices.work]}, which a peer's device batch holds")
    choices.data = existing(choices.data)
    return choices


def settings_of(choices: argparse.Namespace, folder: str) -> dict:
    """What every side is told."""
    return {
        **WORK,
        "model": str(model_folder(choices.model, choices.folder).resolve()),
        "tuning": choices.tuning,
        "rank": RANK[choices.model],
        "lr": RATE[choices.tuning],
        "data": f"{folder}/data.jsonl",
        "tokens": f"{folder}/tokens.jsonl",
        "adapter": f"{folder}/adapter",
        "steps": choices.warmup + choices.steps,
        "sequences": choices.sequences,
        "threads": choices.threads,
        "dtype": choices.dtype,
    }


def uses_file(choices: argparse.Namespace) -> bool:
    return choices.data is not None and (choices.model, choices.work) == ("smollm2", "short")


def records(choices: argparse.Namespace) -> list[dict]:
    count = (choices.warmup + choices.steps) * choices.sequences
    if uses_file(choices):
        return read_records(choices.data, count)
    return draw_records(choices.work, count, WORK["seed"])


def make_sides(choices: argparse.Namespace) -> list[Side]:
    """Ours as it comes and with the settings of `--row`, and the rows of each peer; only what is needed is built."""
    ours = [(OURS, [])] if wanted(OURS, choices.only) else []
    ours += [(name, words) for name, *words in choices.row]
    sides = [Side(name, sys.executable, "tunesmith_sft.py", {"overrides": words}) for name, words in ours]
    for peer, title in PEERS.items():
        for ending, settings, variables in rows_of(peer, choices):
            if wanted(f"{title} {ending}", choices.only):
                python = environments.python_of(peer, TORCH)
                sides.append(Side(f"{title} {ending}", python, f"{peer}_sft.py", settings, variables))
    return sides


def rows_of(peer: str, choices: argparse.Namespace) -> list[tuple[str, dict, dict[str, str]]]:
    """A peer as it comes, and with the best that it offers on a CPU for the same steps: name, settings, variables."""
    batch = DEVICE_BATCH[choices.work]
    device = {"batch": batch, "accumulation": choices.sequences // batch}
    default = {**device, "checkpointing": True, "sort_within_step": False}
    best = {**device, "checkpointing": False, "sort_within_step": True}
    if peer == "unsloth":
        rows = [("default", {**default, "checkpointing": "unsloth"}, CPU)]
        plain, compiled = ({**CPU, "UNSLOTH_CPU_COMPILE": value} for value in "01")
        return [*rows, ("best", best, plain), ("best, compiled", best, compiled)]
    if peer == "torchtune":
        if choices.model != "smollm2":
            return []  # 0.6.1 has no Qwen3
        default["checkpointing"] = False  # as its configurations have it
        return [("default", {**default, "compile": False}, {}), ("best", {**best, "compile": False}, {})]
    return [("default", default, {}), ("best", best, {})]


def proof_settings(shared: dict, choices: argparse.Namespace) -> dict:
    """Two small steps of the first records; they show gradients, updates and, where batches add up, the denominator."""
    batch, accumulation = PROOF[choices.work]
    data = f"{shared['data']}.proof.jsonl"
    write_lines(Path(data), read_lines(Path(shared["data"]))[: 2 * batch * accumulation])
    small = {"batch": batch, "accumulation": accumulation, "sequences": batch * accumulation, "steps": 2}
    return {**shared, **small, "sort_within_step": False, "dtype": "float32", "data": data}


def count(rows: list[dict]) -> tuple[int, int]:
    """Tokens and scored tokens."""
    scored = sum(len(row["answers"][0]) for row in rows)
    return sum(len(row["prompt"]) for row in rows) + scored, scored


def measure_floor(rows: list[dict], shared: dict, choices: argparse.Namespace) -> dict[str, float]:
    """Seconds and operations of the matrix products of all measured steps."""
    measured = rows[choices.warmup * choices.sequences :]
    about = {
        "lengths": [len(row["prompt"]) + len(row["answers"][0]) for row in measured],
        "scored": count(measured)[1],
        "rank": shared["rank"] if choices.tuning == "lora" else None,
    }
    found = run_side(sys.executable, "../common/floor.py", {**shared, **about})
    return {key: found[key] for key in ("floor_seconds", "floor_flops")}


def figures(result: dict, rows: list[dict], floor: dict[str, float], choices: argparse.Namespace) -> dict:
    """Rates over the measured steps, from the end of the last warm-up step to the end of the last step.

    The first step counts from the start of the process: imports, loading, preparing and compiling are inside.
    """
    steps = choices.warmup + choices.steps
    ends = result["ends"][-steps:]  # a side may also mark the start
    (first, first_cpu), (last, last_cpu) = ends[choices.warmup - 1], ends[-1]
    tokens, scored = count(rows[choices.warmup * choices.sequences :])
    return {
        **{key: value for key, value in result.items() if key not in ("ends", "started")},
        "tokens_per_second": tokens / (last - first),
        "scored_tokens_per_second": scored / (last - first),
        "tokens_per_cpu_second": tokens / (last_cpu - first_cpu),
        "cpu_seconds": last_cpu - first_cpu,
        "share_of_floor": floor["floor_seconds"] / (last - first),
        "first_step_seconds": ends[0][0] - result["started"],
        "step_seconds": [now[0] - then[0] for then, now in itertools.pairwise(ends[choices.warmup - 1 :])],
        "peak_less_import_bytes": result["peak_bytes"] - result["import_bytes"],
    }


def describe_work(rows: list[dict], choices: argparse.Namespace) -> dict:
    groups = [rows[start : start + choices.sequences] for start in range(0, len(rows), choices.sequences)]
    lora = {"rank": RANK[choices.model], "targets": "q k v o gate up down", "adapter_dtype": "float32"}
    return {
        **WORK,
        **(lora if choices.tuning == "lora" else {}),
        "lr": RATE[choices.tuning],
        "model": TITLES[choices.model],
        "tuning": choices.tuning,
        "work": choices.work,
        "data": choices.data.name if uses_file(choices) else "drawn",
        "dtype": choices.dtype,
        "optimizer": "AdamW (fused), constant rate, no decay, clipping at 1.0",
        "sequences": choices.sequences,
        "warmup": choices.warmup,
        "steps": choices.steps,
        "repeats": choices.repeats,
        "threads": choices.threads,
        "tokens_per_step": [count(group)[0] for group in groups],
        "scored_per_step": [count(group)[1] for group in groups],
    }


if __name__ == "__main__":
    main()
