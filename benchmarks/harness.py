"""Named tasks of lm-evaluation-harness with Tunesmith as their model against the harness's own `hf` backend."""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from common.environments import versions
from common.models import TITLES, model_folder
from common.named_tasks import write_tasks
from common.options import add_options
from common.process import run_side
from common.report import OURS, PACKAGES, facts, medians_of, save
from common.sides import check_load
from common.tables import show_harness

TASKS = ("arc_easy", "hellaswag", "piqa", "boolq", "winogrande", "mmlu_anatomy", "wikitext")
HF = "hf backend"
BATCHES = (1, 8, 32)
FIGURES = ("cpu_seconds", "seconds")


def main() -> None:
    choices = parse()
    busy = check_load(choices.allow_load)
    with TemporaryDirectory() as made:
        folder = write_tasks(Path(made), choices.count) if choices.data is None else choices.data.resolve()
        given = {
            "model": str(model_folder(choices.model, choices.folder).resolve()),
            "data": str(folder),
            "tasks": choices.tasks,
            "count": choices.count,
            "shots": choices.shots,
            "dtype": choices.dtype,
            "threads": choices.threads,
            "repeats": choices.repeats,
            "batches": BATCHES,
        }
        found = run_side(sys.executable, "harness_run.py", given)
    name = f"harness-{choices.model}-{choices.name.replace(' ', '-')}"
    save(report(found["tasks"], choices, busy), choices.results, name, show_harness)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=tuple(TITLES), default="smollm2")
    parser.add_argument("--folder", type=Path, help="folder of SmolLM2-135M-Instruct; the starter model when left out")
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--count", type=int, default=32, help="exercises of each task")
    parser.add_argument("--shots", type=int, help="solved examples before every question")
    parser.add_argument("--data", type=Path, help="files of your own, NAME/SPLIT.jsonl, instead of made exercises")
    parser.add_argument("--name", default="made", help="what the data are called in the result")
    add_options(parser)
    return parser.parse_args()


def report(found: dict, choices: argparse.Namespace, busy: float) -> dict:
    tasks = {}
    for name, task in found.items():
        runs = task["runs"]
        medians = {side: medians_of(runs[side], FIGURES) for side in runs}
        one, other = (runs[side][0]["answers"] for side in (OURS, HF))
        tasks[name] = {
            "batch": task["batch"],
            "tried": task["tried"],
            "median": medians,
            "speed": medians[HF]["cpu_seconds"] / medians[OURS]["cpu_seconds"],
            "told": {side: runs[side][0]["told"] for side in runs},
            "exercises": len(one),
            "apart": max(map(far, one, other)),
            "runs": {side: [{key: run[key] for key in FIGURES} for run in runs[side]] for side in runs},
        }
    work = {"model": TITLES[choices.model], "work": choices.name, "count": choices.count, "dtype": choices.dtype}
    work |= {"threads": choices.threads, "repeats": choices.repeats, "shots": choices.shots}
    return {
        "benchmark": "harness",
        **facts(work),
        "load_allowed": choices.allow_load,
        "busy_cores_before": [busy],
        "versions": versions(sys.executable, (*PACKAGES, "lm_eval")),
        "tasks": tasks,
    }


def far(one: list, other: list) -> float:
    """The largest difference of the log-likelihoods of one exercise."""
    pairs = zip(one, other, strict=True)
    return max(abs(likelihood(mine[0]) - likelihood(yours[0])) for mine, yours in pairs)


def likelihood(answer: list | float) -> float:
    return float(answer[0] if isinstance(answer, list) else answer)


if __name__ == "__main__":
    main()
