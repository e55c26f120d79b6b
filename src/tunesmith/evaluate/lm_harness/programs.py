"""The metric `code_eval` of the harness's tasks, computed by Tunesmith's sandbox."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tunesmith.rollout.sandbox import Limits, run_program

SECONDS = 3  # what the metric of this name allows a program
METRIC = '''"""Programs run in Tunesmith's sandbox."""

import datasets
import evaluate
from tunesmith.evaluate.lm_harness.programs import judge


class CodeEval(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": datasets.Sequence(text), "references": text})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references, k=(1, 10, 100)):
        return judge(predictions, references, k)
'''


def judge(
    predictions: Sequence[Sequence[str]], references: Sequence[str], k: Sequence[int]
) -> tuple[dict[str, float], list[list[bool]]]:
    """pass@k over all exercises (arXiv:2107.03374 eq. 1), and which programs passed."""
    passed = [
        [run_program(f"{program}\n{reference}\n", Limits(seconds=SECONDS)).passed for program in programs]
        for programs, reference in zip(predictions, references, strict=True)
    ]
    figures = {
        f"pass@{size}": sum(pass_at(len(one), sum(one), size) for one in passed) / len(passed)
        for size in k
        if all(len(one) >= size for one in passed)
    }
    return figures, passed


def pass_at(tried: int, right: int, size: int) -> float:
    """How likely one of `size` programs, drawn from those that were tried, is right."""
    return 1.0 - math.comb(tried - right, size) / math.comb(tried, size)
