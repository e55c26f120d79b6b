"""What classes and predicted numbers are worth: F1, confusion, correlation, squared error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from tunesmith.evaluate.metrics import Score, mean, proportion, resampled
from tunesmith.evaluate.statistics import calibration, calibration_score, correlation, rank_correlation


def probabilities(values_NC: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "N C"]:
    powers = np.exp(values_NC - values_NC.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def class_scores(values_NC: Float[np.ndarray, "N C"], labels_N: Int[np.ndarray, " N"]) -> dict[str, Score]:
    """Accuracy (Wilson), macro F1, mean log loss in nats, and the calibration error of the largest probability."""
    chances = probabilities(values_NC)
    found = values_NC.argmax(1)
    count, sure, right = values_NC.shape[1], chances.max(1), (found == labels_N).astype(float)
    losses = -np.log(np.maximum(chances[np.arange(len(found)), labels_N], 1e-300))
    return {
        "accuracy": proportion(right.tolist()),
        "macro_f1": resampled(lambda p, y: macro_f1(p.astype(int), y.astype(int), count), found, labels_N),
        "log_loss": mean(losses.tolist()),
        "calibration_error": calibration_score(sure, right, 1 / count),
    }


def class_detail(
    values_NC: Float[np.ndarray, "N C"], labels_N: Int[np.ndarray, " N"], classes: Sequence[str]
) -> dict[str, Any]:
    """Precision, recall and F1 of every class, the confusion matrix (row: labelled, column: found), and calibration."""
    found = values_NC.argmax(1)
    matrix = confusion(found, labels_N, len(classes))
    sure = probabilities(values_NC).max(1)
    return {
        "classes": {name: one_class(found == at, labels_N == at) for at, name in enumerate(classes)},
        "confusion": {"classes": list(classes), "counts": matrix.tolist()},
        "calibration": [
            each.to_json() for each in calibration(sure, (found == labels_N).astype(float), 1 / len(classes))
        ],
    }


def one_class(found: np.ndarray, labelled: np.ndarray) -> dict[str, Any]:
    """Precision and recall are null where nothing was found or labelled as the class."""
    both, support = found & labelled, int(labelled.sum())
    return {
        "precision": proportion(both[found].tolist()).to_json() if found.any() else None,
        "recall": proportion(both[labelled].tolist()).to_json() if support else None,
        "f1": f1(int(both.sum()), int(found.sum()), support),
        "n": support,
    }


def f1(both: int, found: int, labelled: int) -> float:
    """2 TP / (2 TP + FP + FN), 0 for a class that is neither found nor labelled."""
    return 2 * both / (found + labelled) if found + labelled else 0.0


def macro_f1(found: np.ndarray, labels: np.ndarray, count: int) -> float:
    """Mean F1 over the classes that are found or labelled at all."""
    matrix = confusion(found, labels, count)
    present = [at for at in range(count) if matrix[at].sum() + matrix[:, at].sum()]
    return float(np.mean([f1(matrix[at, at], matrix[:, at].sum(), matrix[at].sum()) for at in present]))


def confusion(found: np.ndarray, labels: np.ndarray, count: int) -> Int[np.ndarray, "C C"]:
    return np.bincount(labels * count + found, minlength=count * count).reshape(count, count)


def regression_scores(values: Sequence[float], labels: Sequence[float]) -> dict[str, Score]:
    """Pearson and Spearman correlation, and mean squared error."""
    errors = (np.asarray(values) - np.asarray(labels)) ** 2
    return {
        "pearson": resampled(correlation, values, labels),
        "spearman": resampled(rank_correlation, values, labels),
        "mse": mean(errors.tolist()),
    }
