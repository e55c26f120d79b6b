"""How a model is asked: a question as tokens, as a chat or as plain text, and answers as tokens that continue it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import ModelError, Where
from tunesmith.evaluate.exercise import Exercise
from tunesmith.evaluate.tasks import TaskConfig, to_exercise
from tunesmith.types import Example, Message

LINE = "\n"


@dataclass(frozen=True, slots=True)
class Asking:
    """One task as one model reads it. `chat`: by its template."""

    task: TaskConfig
    tokenizer: Tokenizer
    chat: bool
    examples: tuple[Exercise, ...]

    @classmethod
    def of(cls, task: TaskConfig, tokenizer: Tokenizer) -> Asking:
        """ModelError E456 when the task wants a chat and the model has no template."""
        if task.chat == "always" and not tokenizer.has_template:
            raise ModelError(
                "E456",
                f"the task {task.name} asks as a chat, and this model has no chat template",
                where=Where(str(tokenizer.folder)),
                fixes=["chat: auto or chat: never in the task", "add a chat_template.jinja to the model folder"],
            )
        solved = (
            to_exercise(task, value, f"example {at + 1}", Where(field=f"{task.name}.examples.{at}"))
            for at, value in enumerate(task.examples)
        )
        chat = task.chat != "never" and tokenizer.has_template
        return cls(task, tokenizer, chat, tuple(solved))

    @property
    def starts(self) -> list[int]:
        """What stands before a plain text; where a tokenizer has nothing, what ends one, so that all is predicted."""
        known = (self.tokenizer.bos_id, self.tokenizer.eos_id)
        return [*self.tokenizer.start_ids] or [next((one for one in known if one is not None), 0)]

    def plain(self, exercise: Exercise) -> str:
        """The question as plain text, below the solved examples."""
        before = [f"{one.prompt}{self.task.before}{one.reference}\n\n" for one in self.examples]
        return "".join((*before, exercise.prompt))

    def question(self, exercise: Exercise) -> list[int]:
        if not self.chat:
            ids = self.tokenizer.encode(self.plain(exercise), specials=False)
            return [*self.tokenizer.start_ids, *ids] or self.starts
        turns = [] if self.task.system is None else [Message("system", self.task.system)]
        for one in self.examples:
            turns += [Message("user", one.prompt), Message("assistant", one.reference)]
        return self.tokenizer.prompt_ids([*turns, Message("user", exercise.prompt)])

    def answer(self, exercise: Exercise, text: str) -> list[int]:
        """The tokens of an answer, as they stand behind those of the question."""
        before = LINE if self.chat else self.plain(exercise)
        said = text if self.chat else f"{self.task.before}{text}"
        return self.tokenizer.encode_after(said, self.tokenizer.encode(before, specials=False), before)

    def example(self, exercise: Exercise, texts: Sequence[str]) -> Example:
        """The question with answers that each continue it, all of their tokens scored."""
        question = self.question(exercise)
        answers = [self.answer(exercise, text) for text in texts]
        tokens = np.array([*question, *(token for ids in answers for token in ids)], dtype=np.int32)
        weights = np.ones(len(tokens), dtype=np.float32)
        weights[: len(question)] = 0
        ends = np.cumsum([len(question), *(len(ids) for ids in answers)])
        return Example(
            tokens, weights, exercise.where.file or exercise.name, exercise.where.line or 1, tuple(ends[:-1])
        )

    def text(self, exercise: Exercise, longest: int) -> list[Example]:
        """A text in pieces of at most `longest` tokens, each of them predicted once."""
        ids = self.tokenizer.encode(exercise.reference, specials=False)
        size = longest - len(self.starts)
        return [whole(self.starts, ids[at : at + size], exercise) for at in range(0, len(ids), size)]


def whole(starts: Sequence[int], ids: Sequence[int], exercise: Exercise) -> Example:
    weights = np.ones(len(starts) + len(ids), dtype=np.float32)
    weights[: len(starts)] = 0
    tokens = np.array([*starts, *ids], dtype=np.int32)
    return Example(tokens, weights, exercise.where.file or exercise.name, exercise.where.line or 1)
