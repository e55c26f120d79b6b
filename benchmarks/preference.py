"""Preferences with LoRA on SmolLM2-135M: `tunesmith train` against TRL and LLaMA-Factory; same pairs, steps, losses."""

import argparse
import hashlib
import itertools
import math
import statistics
import sys
import tempfile
from pathlib import Path

from common import environments
from common.models import TITLES, starter
from common.options import add_options, existing, wanted
from common.pairs import draw_pairs, read_lines, read_pairs, records_of, write_lines
from common.process import run_side
from common.proof import prove
from common.report import save, summarise
from common.sides import TORCH, Side, alternate
from common.tables import show

WORK = {"rank": 8, "alpha": 16, "lr": 1e-4, "beta": 0.1, "max_length": 2048, "seed": 0}
TOLERANCE = 1e-4  # largest difference of a loss of the first two steps between sides in fp32
START = {"dpo": math.log(2), "kto": 0.5}  # the loss of a policy that equals its reference
PEERS = {"dpo": ("trl", "llamafactory"), "kto": ("trl",), "orpo": ("llamafactory",)}
SCRIPTS = {"trl": "trl_preference.py", "llamafactory": "llamafactory_preference.py"}
NAMES = {"trl": "trl", "llamafactory": "llama-factory"}
STEPS = {"short": 6, "long": 1}  # per epoch
PROOF_PAIRS = {"short": 4, "long": 1}  # pairs a step of the fp32 proof
DEVICE_BATCH_LONG = {"dpo": 1, "orpo": 1, "kto": 2}  # records; TRL's KTO needs another prompt in each batch
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
        run_side(peer, "peft_adapter.py", shared)
        rows = read_lines(Path(shared["tokens"]))
        proof = {}
        if not choices.no_proof:
            proof = prove(sides, proof_settings(shared, choices), TOLERANCE, START.get(choices.method))

        def run(side: Side) -> dict:
            return figures(side.train(shared), rows, choices)

        busy = list(alternate(sides, choices.repeats, choices.allow_load, run))
        digest = hashlib.sha256(Path(shared["tokens"]).read_bytes()).hexdigest()
    notes = {"busy_cores_before": busy, "tokens_sha256": digest, "losses_float32": proof}
    about = {"load_allowed": choices.allow_load, "tolerance": TOLERANCE, **notes}
    report = summarise("preference", sides, FIGURES, describe_work(rows, choices), about)
    name = f"preference-{choices.method}-{choices.work}-{choices.epochs}e"
    save(report, choices.results, name, None if choices.json else show)


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
    add_options(parser)
    choices = parser.parse_args()
    choices.steps = choices.steps or STEPS[choices.work]
    if choices.pairs % 4:
        parser.error("--pairs: a multiple of 4, which is what a peer's device batch holds")
    choices.data = existing(choices.data)
    return choices


def settings_of(choices: argparse.Namespace, folder: str) -> dict:
    """What every side is told; `records` are those of a step, two for a pair of KTO."""
    return {
        **WORK,
        "method": choices.method,
        "model": str((choices.model or starter()).resolve()),
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
        for name, settings in ((f"{NAMES[peer]} default", default), (f"{NAMES[peer]} best", best)):
            if wanted(name, choices.only):
                sides.append(Side(name, environments.python_of(peer, TORCH), SCRIPTS[peer], settings))
    return [side for side in sides if wanted(side.name, choices.only)]


def proof_settings(shared: dict, choices: argparse.Namespace) -> dict:
    """Two small steps of the first records; the second loss shows that gradients and updates agree as well."""
    records = PROOF_PAIRS[choices.work] * (2 if choices.method == "kto" else 1)
    data = f"{shared['data']}.proof.jsonl"
    write_lines(Path(data), read_lines(Path(shared["data"]))[: 2 * records])
    small = {"steps": 2, "epochs": 1, "records": records, "batch": records, "accumulation": 1}
    return {**shared, **small, "dtype": "float32", "data": data}


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
        **{key: value for key, value in result.items() if key not in ("ends", "started")},
        "tokens_per_second": choices.epochs * tokens / (last - start),
        "pairs_per_second": pairs / (last - start),
        "cpu_seconds_per_pair": (last_cpu - start_cpu) / pairs,
        "tokens_per_cpu_second": choices.epochs * tokens / (last_cpu - start_cpu),
        "first_epoch_tokens_per_second": tokens / (first - start),
        "later_epochs_tokens_per_second": later,
        "step_seconds": [now[0] - then[0] for then, now in itertools.pairwise(ends)],
        "peak_less_import_bytes": result["peak_bytes"] - result["import_bytes"],
    }


def describe_work(rows: list[dict], choices: argparse.Namespace) -> dict:
    answers = [answer for row in rows for answer in row["answers"]]
    return {
        **WORK,
        "method": choices.method,
        "work": choices.work,
        "data": choices.data.name if choices.data is not None and choices.work == "short" else "drawn",
        "model": TITLES["smollm2"],
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


if __name__ == "__main__":
    main()
