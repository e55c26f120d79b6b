"""Texts scored by a reward model or classifier: records become examples, examples rows of values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import nn

from tunesmith.data.chat import encode_record
from tunesmith.data.config import DataConfig
from tunesmith.data.packing import batch_of, pack
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import DataError, Fix, ModelError, Where
from tunesmith.export.opening import Which, open_model
from tunesmith.models.forward import base_model, read_only
from tunesmith.models.heads import positions
from tunesmith.models.meaning import Meaning, store_offset
from tunesmith.types import Example, Feedback, Message, Task, Turns

MICROBATCH_TOKENS = 4096
SINGLE = Task("feedback", "values")

Progress = Callable[[int, int], None]


class Scorer:
    """A reward model that is loaded once and scores answers; rewards are told without the model's offset."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, meaning: Meaning) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.meaning = meaning
        self.longest = positions(base_model(model).config)

    @classmethod
    def open(cls, name: str, *, which: Which = "auto") -> Scorer:
        """The reward model that a run, an adapter folder or a model folder holds.

        ModelError E245 when it is a language model, E247 when it is a classifier.
        """
        opened = open_model(name, which=which, wants="values")
        if opened.source.outputs > 1:
            raise gives_classes(name)
        return cls(opened.model, opened.tokenizer, opened.source.meaning)

    def score(self, items: Sequence[tuple[Turns, Turns]], on_progress: Progress | None = None) -> list[float]:
        """The reward of each (prompt, answer); answers in a row to one prompt share its computation.

        Chats are rendered with the model's template, plain texts without one. Raises DataError E246 for an answer that
        is longer than the model reads.
        """
        settings = DataConfig(max_length=self.longest, overlong="drop")
        examples = []
        for place, (prompt, answer) in enumerate(items):
            said = (
                (Message("assistant", answer),) if isinstance(answer, str) and not isinstance(prompt, str) else answer
            )
            entry = Feedback(prompt, said, True, "answer", place + 1)
            outcome = encode_record(entry, self.tokenizer, settings, SINGLE)
            if not outcome.examples:
                raise too_long(place, outcome.length, self.longest)
            examples += outcome.examples
        rows = values_of(self.model, list(joined(examples)), on_progress)
        return [float(value) - self.meaning.offset for row in rows for value in row[:, 0]]


def values_of(
    model: nn.Module, examples: Sequence[Example], on_progress: Progress | None = None
) -> list[Float[np.ndarray, "S C"]]:
    """For each example the values of its answers (or steps, or of itself), in order; batched by tokens."""
    found: list[list[np.ndarray]] = [[] for _ in examples]
    device, done = base_model(model).device, 0
    for group in pack([len(example) for example in examples], MICROBATCH_TOKENS):
        batch = batch_of([examples[index] for index in group], "values")
        values = read_only(model, batch.to(device), "values").values
        assert values is not None, "a model with a head gives values"
        owners = batch.group[batch.sequence].tolist()
        for owner, row in zip(owners, values.double().cpu().numpy(), strict=True):
            found[group[owner]].append(row)
        done += len(group)
        if on_progress is not None:
            on_progress(done, len(examples))
    return [np.stack(rows) for rows in found]


def centre(model: nn.Module, examples: Sequence[Example], folder: Path, name: str) -> float:
    """Remember in the folder of a reward model the mean reward of all answers of a reference set called `name`.

    Rewards are learned up to a constant; scores are told without this one, so that 0 is an average answer. The weights
    stay as they are: transformers gives rewards with it.
    """
    rows = values_of(model, examples)
    offset = float(np.concatenate(rows)[:, 0].mean())
    store_offset(folder, offset, name)
    return offset


def joined(examples: Iterable[Example]) -> Iterator[Example]:
    """Examples of one answer each; those in a row with the same prompt become one, as long as a microbatch holds it."""
    held: list[Example] = []
    size = 0
    for each in examples:
        extra = len(each) - each.cuts[0]
        if held and (size + extra > MICROBATCH_TOKENS or prompt_of(each) != prompt_of(held[0])):
            yield join(held)
            held = []
        size = size + extra if held else len(each)
        held.append(each)
    if held:
        yield join(held)


def prompt_of(example: Example) -> bytes:
    return example.tokens[: example.cuts[0]].tobytes()


def join(examples: Sequence[Example]) -> Example:
    first = examples[0]
    cut = first.cuts[0]
    answers = [first.tokens, *(each.tokens[cut:] for each in examples[1:])]
    ends = np.cumsum([len(answer) for answer in answers])
    return replace(
        first,
        tokens=np.concatenate(answers),
        weights=np.concatenate([first.weights, *(each.weights[cut:] for each in examples[1:])]),
        cuts=(cut, *(int(end) for end in ends[:-1])),
        labels=tuple(label for each in examples for label in each.labels),
    )


def too_long(place: int, length: int, longest: int) -> DataError:
    return DataError(
        "E246",
        f"answer {place + 1} cannot be scored: with its prompt it has {length:,} tokens, the model reads {longest:,}",
        fixes=["shorten the prompt, or leave out its oldest turns", "use a reward model with a longer context"],
    )


def gives_classes(name: str) -> ModelError:
    return ModelError(
        "E247",
        "this is a classifier: it gives classes, and no single score that could order answers",
        where=Where(name),
        fixes=[Fix("classify texts with it", command=f"tunesmith score {name} --data FILE"), "use a reward model"],
    )
