"""Several answers of a model to each prompt, written as they come and continued after a kill."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.rollout.answers import AnswerFile
from tunesmith.rollout.config import SamplingConfig
from tunesmith.rollout.generator import Generated, Progress, Request, Sampling, complete, context_length
from tunesmith.rollout.prompts import Prompt

Load = Callable[[], tuple[nn.Module, Tokenizer]]
Stop = Callable[[], None]  # called at every token; raises when the work is to end here


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a file of answers holds; speed is of this attempt alone, lengths are tokens with their end.

    `distinct` is the share of different answers among those to one prompt, averaged over prompts.
    """

    prompts: int
    completions: int
    new: int
    tokens_per_second: float
    finished: float
    mean_length: float
    distinct: float
    left_out: int  # prompts that fill the model's context

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Drawing:
    """How answers are drawn, and whom it tells."""

    settings: SamplingConfig
    seed: int = 0
    on_progress: Progress | None = None
    check_stop: Stop | None = None


def drawing_identity(settings: SamplingConfig, seed: int, weights: Mapping[str, str]) -> dict[str, Any]:
    """What decides the answers: two files with the same hold the same ones."""
    same = {"batch_size"} if settings.products == "int8" else {"batch_size", "products"}  # but for rounding
    told = settings.model_dump(mode="json", exclude=same)
    return {**told, "seed": seed, "weights": dict(weights)}


def draw_answers(load: Load, prompts: Sequence[Prompt], file: AnswerFile, drawing: Drawing) -> Sampled:
    """Fill `file` with the answers that it lacks; `load` gives the model, and is not called when none is missing.

    Answer k to prompt i is drawn from a generator of its own, seeded by (seed, i, k): neither the batch size nor an
    interruption changes it. Prompts that fill the context are left out and counted.
    """
    missing = file.begin(prompts)
    new, speed, left_out = fill(load, prompts, missing, file, drawing) if missing else (0, 0.0, 0)
    rows = file.finish(index for index in range(len(prompts)) if index in file.done)
    return summarise(rows, new, speed, left_out)


def fill(
    load: Load, prompts: Sequence[Prompt], missing: Sequence[int], file: AnswerFile, drawing: Drawing
) -> tuple[int, float, int]:
    """Answer the missing prompts: how many answers, at how many tokens a second, how many prompts were left out."""
    model, tokenizer = load()
    settings, room = drawing.settings, context_length(model)
    tokens = {index: prompts[index].tokens(tokenizer) for index in missing}
    fitting = [index for index in missing if 0 < len(tokens[index]) < room]
    requests = [Request(at, (index, k)) for at, index in enumerate(fitting) for k in range(settings.answers)]
    sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, drawing.seed)
    held: dict[int, dict[int, Generated]] = {index: {} for index in fitting}
    texts = [tokens[index] for index in fitting]
    done, drawn, started = 0, 0, time.monotonic()

    def on_token() -> None:
        if drawing.on_progress is not None:
            drawing.on_progress(done, len(requests))
        if drawing.check_stop is not None:
            drawing.check_stop()

    each = complete(model, tokenizer, texts, requests, sampling, settings.batch_size, on_token, settings.products)
    for place, made in each:
        index, k = requests[place].name
        held[index][k] = made
        done, drawn = done + 1, drawn + len(made.tokens)
        if len(held[index]) == settings.answers:
            group = held.pop(index)
            file.write(index, answer_row(prompts[index], [group[at] for at in range(settings.answers)]))
            on_token()
    seconds = time.monotonic() - started
    return len(requests), drawn / seconds if requests else 0.0, len(missing) - len(fitting)


def answer_row(prompt: Prompt, made: Sequence[Generated]) -> dict[str, Any]:
    return {
        **prompt.to_json(),
        "answers": [answer.text for answer in made],
        "finished": [answer.finished for answer in made],
        "lengths": [len(answer.tokens) for answer in made],
        "scores": [0.0] * len(made),  # read as a ranking, a file that was never labelled holds nothing but ties
        "record": f"{prompt.file}:{prompt.line}",
    }


def summarise(rows: Sequence[dict[str, Any]], new: int, speed: float, left_out: int) -> Sampled:
    finished = [flag for row in rows for flag in row["finished"]]
    lengths = [length for row in rows for length in row["lengths"]]
    distinct = [len(set(row["answers"])) / len(row["answers"]) for row in rows]
    return Sampled(
        prompts=len(rows),
        completions=len(finished),
        new=new,
        tokens_per_second=speed,
        finished=mean(finished),
        mean_length=mean(lengths),
        distinct=mean(distinct),
        left_out=left_out,
    )


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
