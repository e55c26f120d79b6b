"""What prepared examples know of their answers: where each begins, what the record says of it, which prompt it has."""

from __future__ import annotations

import hashlib
from array import array
from pathlib import Path

import numpy as np

from tunesmith.types import Example

FILES = ("cuts", "cut_bounds", "labels", "label_bounds", "prompts")


class Judgements:
    """Cuts and labels of each example, memory-mapped; example i has `cuts[cut_bounds[i]:cut_bounds[i + 1]]`."""

    def __init__(self, folder: Path) -> None:
        self._cuts, self._cut_bounds, self._labels, self._label_bounds, self.prompt_hashes = _open(folder)

    def of(self, index: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        cuts = self._cuts[self._cut_bounds[index] : self._cut_bounds[index + 1]]
        labels = self._labels[self._label_bounds[index] : self._label_bounds[index + 1]]
        return tuple(cuts.tolist()), tuple(labels.tolist())

    @property
    def first_labels(self) -> np.ndarray:
        """The first label of every example, float64 (N,)."""
        return self._labels[self._label_bounds[:-1]]

    @property
    def first_cuts(self) -> np.ndarray:
        """Where the first answer of every example begins, int32 (N,); for examples that all have answers."""
        return self._cuts[self._cut_bounds[:-1]]

    @property
    def answers(self) -> np.ndarray:
        """How many answers every example has, int64 (N,)."""
        return np.diff(self._cut_bounds)

    def is_whole(self, examples: int) -> bool:
        return (
            len(self._cut_bounds) == len(self._label_bounds) == examples + 1 == len(self.prompt_hashes) + 1
            and int(self._cut_bounds[-1]) == len(self._cuts)
            and int(self._label_bounds[-1]) == len(self._labels)
        )


class JudgementWriter:
    """Collects what `Judgements` reads, about 40 bytes an example."""

    def __init__(self) -> None:
        self._cuts, self._cut_bounds = array("i"), array("q", [0])
        self._labels, self._label_bounds = array("d"), array("q", [0])
        self._prompts = array("Q")

    def append(self, example: Example) -> None:
        self._cuts.extend(example.cuts)
        self._cut_bounds.append(len(self._cuts))
        self._labels.extend(example.labels)
        self._label_bounds.append(len(self._labels))
        self._prompts.append(prompt_hash(example))

    def save(self, folder: Path) -> None:
        columns = (self._cuts, self._cut_bounds, self._labels, self._label_bounds, self._prompts)
        for name, column in zip(FILES, columns, strict=True):
            np.save(folder / f"{name}.npy", np.asarray(column))


def spans_of(example: Example) -> list[tuple[int, int]]:
    """Where the tokens of each answer (or step) begin and end; empty for a plain sequence."""
    ends = (*example.cuts[1:], len(example)) if example.cuts else ()
    return list(zip(example.cuts, ends, strict=True))


def answers_of(example: Example) -> list[np.ndarray]:
    """The tokens of each answer."""
    return [example.tokens[start:end] for start, end in spans_of(example)]


def prompt_hash(example: Example) -> int:
    """64 bits that tell prompts apart; of the whole text where there is no prompt."""
    prompt = example.tokens[: example.cuts[0]] if example.cuts else example.tokens
    digest = hashlib.blake2b(np.ascontiguousarray(prompt, dtype=np.int32).tobytes(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _open(folder: Path) -> list[np.ndarray]:
    return [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in FILES]
