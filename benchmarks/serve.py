"""The server under 1, 8 and 32 clients against answers one at a time by transformers; or a crowd for some seconds."""

import argparse
import sys
from pathlib import Path

from common.environments import versions
from common.models import TITLES, model_folder
from common.options import add_options
from common.report import PACKAGES, facts, medians_of, save
from common.sides import Side, alternate
from common.tables import show_serving

FIGURES = (
    *("requests_per_second", "tokens_per_second", "tokens_per_cpu_second"),
    *("first_token_p50", "first_token_p95", "peak_bytes"),
)
SUBJECTS = ("the sea", "a bridge", "bread", "a lost key", "rain", "an old map", "a choir", "winter", "salt", "a clock")
PROMPTS = [f"Write {number} lines about {subject}." for number in (2, 3, 5, 8) for subject in SUBJECTS]


def main() -> None:
    choices = parse()
    folder = str(model_folder("smollm2", choices.folder).resolve())
    shared = {
        "model": folder,
        "prompts": PROMPTS,
        "dtype": choices.dtype,
        "threads": choices.threads,
        "tokens": choices.tokens,
        "products": choices.products,
        "seconds": choices.seconds,
        "watch": max(1.0, choices.seconds / 30),
    }
    sides = [
        Side(f"tunesmith, {count} clients", sys.executable, "serve_run.py", crowd(count, choices))
        for count in choices.clients
    ]
    if not choices.seconds:
        one = {"program": "transformers", "clients": 1, "each": choices.requests}
        sides.append(Side("transformers, one at a time", sys.executable, "serve_run.py", one))
    busy = list(alternate(sides, choices.repeats, choices.allow_load, lambda side: side.train(shared)))
    name = "soak" if choices.seconds else "clients"
    save(report(sides, choices, busy), choices.results, f"serve-smollm2-{name}", show_serving)
    if errors := [error for side in sides for run in side.runs for error in run["errors"]]:
        raise SystemExit(f"{len(errors)} errors, first {errors[0]}")


def crowd(count: int, choices: argparse.Namespace) -> dict:
    each = max(1, choices.requests // count) if not choices.seconds else 1
    return {"program": "tunesmith", "clients": count, "each": each}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="folder of SmolLM2-135M-Instruct; the starter model when left out")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=64, help="in all, by each number of clients")
    parser.add_argument("--tokens", type=int, default=64, help="of every answer; none ends before")
    parser.add_argument("--seconds", type=float, default=0, help="go on for so long, and watch the memory")
    parser.add_argument("--products", choices=("packed", "shared", "int8"), default="packed")
    add_options(parser)
    return parser.parse_args()


def report(sides: list[Side], choices: argparse.Namespace, busy: list[float]) -> dict:
    names = ("requests", "tokens", "seconds", "products", "dtype", "threads", "repeats")
    work = {"model": TITLES["smollm2"], **{name: vars(choices)[name] for name in names}}
    return {
        "benchmark": "serve",
        **facts(work),
        "load_allowed": choices.allow_load,
        "busy_cores_before": busy,
        "sides": {
            side.name: {
                "settings": side.settings,
                "versions": versions(side.python, PACKAGES),
                "median": medians_of(side.runs, FIGURES),
                "runs": side.runs,
            }
            for side in sides
        },
    }


if __name__ == "__main__":
    main()
