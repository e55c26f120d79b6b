"""What sets the better answers of a data set apart from the worse ones besides their worth: length, number, doubt."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np

from tunesmith.data.judgements import answers_of, prompt_hash
from tunesmith.errors import Diagnostic, Fix, Where
from tunesmith.types import Example, Task

LONGER = 0.65  # share of comparisons that the longer answer may win before it is a warning; 1 - LONGER for the shorter
FEWEST = 20  # comparisons that a share is judged by
RARE = 0.2  # of an even share; a rarer class or label is a warning
SHOWN_PLACES = 5
_WORDS = {"pair": ("chosen", "rejected"), "ranking": ("best", "worst"), "feedback": ("good", "bad")}


class Contrast:
    """Looks at judged examples one after another; `prompts` holds where each prompt was met first."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.prompts: dict[int, Where] = {}
        self._better, self._worse = array("i"), array("i")
        self._claims: dict[bytes, tuple[float, Where]] = {}  # the first claim about each subject
        self._contradictions: list[tuple[Where, Where]] = []
        self._contradicted = 0

    def look(self, example: Example, where: Where) -> None:
        if self.task.kind == "sequence":
            return
        prompt = prompt_hash(example)
        if example.cuts:
            self.prompts.setdefault(prompt, where)
        if self.task.kind != "process":
            self._look_at_claims(example, prompt, where)
        if self.task.kind in _WORDS:
            self._look_at_lengths(example)

    def figures(self) -> dict[str, float]:
        """Mean lengths of better and worse answers, and how often the longer one is the better one."""
        if not self._better or not self._worse:
            return {}
        better, worse = _WORDS[self.task.kind]
        return {
            f"mean {better} tokens": float(np.mean(self._better)),
            f"mean {worse} tokens": float(np.mean(self._worse)),
            f"{better} longer": self._longer()[0],
        }

    def findings(self, name: str, labels: Mapping[str, int]) -> list[Diagnostic]:
        """Warnings about one set, which has these labels (good and bad, or classes)."""
        found = [*self._length_bias(name), *self._imbalance(name, labels)]
        if self._contradicted:
            shown = ", ".join(f"{one} against {other}" for one, other in self._contradictions)
            more = " ..." if self._contradicted > len(self._contradictions) else ""
            found.append(
                Diagnostic(
                    "W215",
                    f"{self._contradicted:,} {name} records say the opposite of an earlier one",
                    "warning",
                    where=self._contradictions[0][0],
                    evidence=(shown + more,),
                    fixes=(
                        Fix("keep the judgement you trust and remove the other"),
                        Fix("allow for wrong labels", {"objective": "cdpo"}),
                    )[: 2 if self.task.kind == "pair" else 1],
                )
            )
        return found

    def _look_at_lengths(self, example: Example) -> None:
        lengths = [len(answer) for answer in answers_of(example)]
        if self.task.kind == "feedback":
            (self._better if example.labels[0] else self._worse).append(lengths[0])
        elif self.task.kind == "pair" or example.labels[0] > example.labels[-1]:
            self._better.append(lengths[0])
            self._worse.append(lengths[-1])

    def _look_at_claims(self, example: Example, prompt: int, where: Where) -> None:
        opposed: Where | None = None
        for subject, claim in claims_of(example, prompt, self.task):
            said, first = self._claims.setdefault(subject, (claim, where))
            opposed = opposed or (first if said != claim else None)
        if opposed is not None:
            self._contradicted += 1
            if len(self._contradictions) < SHOWN_PLACES:
                self._contradictions.append((where, opposed))

    def _longer(self) -> tuple[float, int]:
        """Share of comparisons between answers of different length that the longer one wins, and how many there are.

        Feedback compares every good answer with every bad one.
        """
        better, worse = np.asarray(self._better), np.asarray(self._worse)
        if self.task.kind == "feedback":
            ordered = np.sort(worse)
            longer = int(np.searchsorted(ordered, better, "left").sum())
            shorter = int((len(ordered) - np.searchsorted(ordered, better, "right")).sum())
            return longer / max(1, longer + shorter), min(len(better), len(worse))
        longer, shorter = int((better > worse).sum()), int((better < worse).sum())
        return longer / max(1, longer + shorter), longer + shorter

    def _length_bias(self, name: str) -> Iterator[Diagnostic]:
        if not self._better or not self._worse:
            return
        share, count = self._longer()
        if count < FEWEST or 1 - LONGER <= share <= LONGER:
            return
        better, worse = _WORDS[self.task.kind]
        learned = "long" if share > LONGER else "short"
        yield Diagnostic(
            "W212",
            f"in {share:.0%} of the {name} comparisons the {better} answer is the longer one: "
            f"to be {learned} may be what is learned",
            "warning",
            evidence=(
                f"mean tokens: {better} {np.mean(self._better):,.0f}, {worse} {np.mean(self._worse):,.0f}",
                f"{count:,} {'answers of the rarer label' if self.task.kind == 'feedback' else 'comparisons'}",
            ),
            fixes=(
                Fix("use an objective that takes length out", {"objective": "simpo"}),
                Fix(
                    "add comparisons in which the shorter answer is better" if learned == "long" else "add longer ones"
                ),
            )[0 if self.task.kind == "pair" else 1 :],
        )

    def _imbalance(self, name: str, labels: Mapping[str, int]) -> Iterator[Diagnostic]:
        total = sum(labels.values())
        kinds = self.task.classes or ("good", "bad")
        if not labels or total < FEWEST:
            return
        counts = Counter({kind: labels.get(kind, 0) for kind in kinds})
        rarest, fewest = min(counts.items(), key=lambda item: item[1])
        if fewest * len(kinds) >= RARE * total:
            return
        shown = [f"{kind}: {count:,}" for kind, count in counts.most_common(10)]
        yield Diagnostic(
            "W213",
            f"only {fewest:,} of {total:,} {name} records are {rarest!r}",
            "warning",
            evidence=(", ".join(shown) + (" ..." if len(counts) > 10 else ""),),
            fixes=(
                Fix(f"add records that are {rarest!r}"),
                Fix("take a source of the rarer ones more often: data.train.N.weight"),
            ),
        )


def claims_of(example: Example, prompt: int, task: Task) -> Iterator[tuple[bytes, float]]:
    """What a record says of its prompt: subjects as keys (two answers, an answer, a text), and the claim about each."""
    if task.kind == "label":
        yield _key(prompt), example.labels[0]
        return
    names = [_key(prompt, *answer.tolist()) for answer in answers_of(example)]
    if task.kind == "feedback":
        yield names[0], example.labels[0]
        return
    for better, worse in combinations(range(len(names)), 2):
        tied = task.kind == "ranking" and example.labels[better] == example.labels[worse]
        if not tied and names[better] != names[worse]:
            first, second = sorted((names[better], names[worse]))
            yield first + second, float(names[better] == first)


def _key(*parts: int) -> bytes:
    return hashlib.blake2b(np.array(parts, dtype=np.uint64).tobytes(), digest_size=8).digest()
