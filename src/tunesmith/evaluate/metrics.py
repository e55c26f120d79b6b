"""Scores with 95 % intervals: what an answer is worth beside its reference."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from tunesmith.errors import Fix, MachineError

Z = 1.959963984540054  # the normal distribution holds 95 % within Z standard deviations
RESAMPLES = 1000
SEED = 12345
EAST_ASIAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # scripts without spaces: each sign is a word
WORD = re.compile(rf"[{EAST_ASIAN}]|[^\W_{EAST_ASIAN}]+")


@dataclass(frozen=True, slots=True)
class Score:
    """A value over n units (answers, or records for the loss) and its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def exact_match(answer: str, reference: str) -> bool:
    """The same text, white space around it aside."""
    return answer.strip() == reference.strip()


def contains(answer: str, reference: str) -> bool:
    """The reference stands somewhere in the answer; an empty reference only in an empty answer."""
    wanted = reference.strip()
    return wanted in answer if wanted else not answer.strip()


def valid_json(answer: str) -> bool:
    """The whole answer is one JSON object or array: no text around it, no NaN, no Infinity."""
    try:
        return isinstance(json.loads(answer, parse_constant=_refuse), dict | list)
    except (ValueError, RecursionError):
        return False


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of lower-cased words (Lin 2004), without stemming."""
    answered, wanted = words(answer), words(reference)
    common = longest_common(answered, wanted)
    return 2 * common / (len(answered) + len(wanted)) if common else 0.0


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, a few operations on long integers per word (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    everything = row = (1 << len(one)) - 1
    for word in other:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & everything
    return len(one) - row.bit_count()


def proportion(hits: Sequence[float]) -> Score:
    """A share with its Wilson interval, which stays inside [0, 1] and is honest at 0 and 1; a tie is a hit of 1/2."""
    n = len(hits)
    share = sum(hits) / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return Score(share, max(0.0, centre - half), min(1.0, centre + half), n)


def mean(values: Sequence[float]) -> Score:
    """A mean with the interval of a seeded bootstrap over the values."""
    return ratio(values, np.ones(len(values)))


def ratio(tops: Sequence[float], bottoms: Sequence[float] | np.ndarray) -> Score:
    """sum(tops) / sum(bottoms) with the interval of a seeded bootstrap over the pairs (percentiles)."""
    return resampled(lambda top, bottom: top.sum() / bottom.sum(), tops, bottoms)


def resampled(statistic: Callable[..., float], *columns: Sequence[float] | np.ndarray) -> Score:
    """A figure of columns of equal length with the interval of a seeded bootstrap over their rows (percentiles).

    Draws that leave the figure undefined (NaN) are left out; the interval is NaN when all of them do.
    """
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    rows = len(arrays[0])
    generator = np.random.default_rng(SEED)
    drawn = np.empty(RESAMPLES)
    for at in range(RESAMPLES):
        chosen = generator.integers(0, rows, rows)
        drawn[at] = statistic(*(array[chosen] for array in arrays))
    known = drawn[~np.isnan(drawn)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)
    return Score(float(statistic(*arrays)), float(low), float(high), rows)


def loss(nll: Sequence[float], weights: Sequence[float]) -> Score:
    """Mean negative log-probability per token over the whole set, in nats; one pair of sums per record."""
    return ratio(nll, weights)


def perplexity(nll: Sequence[float], weights: Sequence[float]) -> Score:
    """exp of the loss over the whole set, never a mean of perplexities."""
    score = loss(nll, weights)
    return Score(_exp(score.value), _exp(score.low), _exp(score.high), score.n)


def corpus(name: str, answers: Sequence[str], references: Sequence[str]) -> Score:
    """`bleu` or `chrf` of the whole set as sacrebleu counts them (0 to 100), with its own bootstrap interval.

    Raises MachineError E152 without sacrebleu.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise MachineError(
            "E152",
            f"{name} is counted by sacrebleu, which is not installed",
            fixes=[Fix("install it", command="pip install sacrebleu"), "choose other metrics, such as rouge_l"],
        ) from error
    metric = BLEU() if name == "bleu" else CHRF()
    found = metric.corpus_score(list(answers), [list(references)], n_bootstrap=RESAMPLES)
    told = json.loads(found.format(width=6, signature=metric.get_signature().format(), is_json=True))
    centre, half = told["confidence_mean"], told["confidence_var"]
    value = float(found.score)
    return Score(value, min(value, max(0.0, centre - half)), max(value, min(100.0, centre + half)), len(answers))


def _shares(hit: Callable[[str, str], bool], answers: Sequence[str], references: Sequence[str]) -> Score:
    return proportion([hit(answer, reference) for answer, reference in zip(answers, references, strict=True)])


def _mean_rouge(answers: Sequence[str], references: Sequence[str]) -> Score:
    return mean([rouge_l(answer, reference) for answer, reference in zip(answers, references, strict=True)])


def _valid(answers: Sequence[str], references: Sequence[str]) -> Score:
    return proportion([valid_json(answer) for answer in answers])


ANSWER_METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], Score]] = {
    "exact_match": partial(_shares, exact_match),
    "contains": partial(_shares, contains),
    "valid_json": _valid,
    "rouge_l": _mean_rouge,
    "chrf": partial(corpus, "chrf"),
    "bleu": partial(corpus, "bleu"),
}
LOSS_METRICS: dict[str, Callable[[Sequence[float], Sequence[float]], Score]] = {"loss": loss, "perplexity": perplexity}


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
