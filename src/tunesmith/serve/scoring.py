"""Rewards, classes and embeddings for texts of a request."""

from __future__ import annotations

from typing import Any

from tunesmith.data.chat import encode_record
from tunesmith.data.config import DataConfig
from tunesmith.evaluate.classification import probabilities
from tunesmith.evaluate.scoring import Scorer, values_of
from tunesmith.serve.encoder import Encoder
from tunesmith.serve.refusals import Refusal
from tunesmith.serve.wire import EmbeddingAsked, Scorable, ScoreAsked, Turn
from tunesmith.types import Example, Labelled, Task, Turns


def encode_texts(encoder: Encoder, asked: EmbeddingAsked) -> list[list[int]]:
    width = encoder.model.config.hidden_size
    if asked.dimensions is not None and asked.dimensions != width:
        message = f"this model gives {width} dimensions"
        raise Refusal("E411", message, field="dimensions", fix="leave it out")
    if isinstance(asked.input, str):
        return [encoder.encode(asked.input)]
    return [encoder.encode(text, f"input.{at}") for at, text in enumerate(asked.input)]


def score(scorer: Scorer, asked: ScoreAsked) -> list[dict[str, Any]]:
    """A row for each entry of the input: its score, and for a classifier its class and the chances of all."""
    if not scorer.meaning.classes and scorer.meaning.is_reward:
        pairs = [pair(each, at) for at, each in enumerate(asked.input)]
        return [{"score": value} for value in scorer.score(pairs)]
    values = values_of(scorer.model, [labelled(scorer, each, at) for at, each in enumerate(asked.input)])
    rows = []
    for each in values:
        last = each[-1]
        if not scorer.meaning.classes:
            rows.append({"score": float(last[0])})
            continue
        chances = map(float, probabilities(last[None])[0])
        named = dict(zip(scorer.meaning.classes, chances, strict=True))
        rows.append({"score": float(last.max()), "class": max(named, key=named.__getitem__), "probabilities": named})
    return rows


def pair(each: Scorable | str | list[Turn], at: int) -> tuple[Turns, Turns]:
    """What a reward model judges: an answer to a prompt, or the last turn of a chat."""
    if isinstance(each, Scorable):
        return turns(each.prompt), each.answer
    if isinstance(each, str) or len(each) < 2 or each[-1].role != "assistant":
        raise Refusal(
            "E411",
            "a reward model scores an answer to a prompt",
            field=f"input.{at}",
            fix='give {"prompt": ..., "answer": ...}, or a chat that ends with the assistant',
        )
    return turns(each[:-1]), turns(each[-1:])


def turns(given: str | list[Turn]) -> Turns:
    return given if isinstance(given, str) else tuple(turn.message() for turn in given)


def labelled(scorer: Scorer, each: Scorable | str | list[Turn], at: int) -> Example:
    """A text or chat as a classifier reads it. Raises Refusal E414 for one that is too long."""
    if isinstance(each, Scorable):
        fix = "give a text, or a chat"
        raise Refusal("E411", "a classifier reads texts and chats", field=f"input.{at}", fix=fix)
    entry = Labelled(turns(each), 0.0, "input", at + 1)
    settings = DataConfig(max_length=scorer.longest, overlong="drop", train_on="all_assistant")
    outcome = encode_record(entry, scorer.tokenizer, settings, Task("label", "values"))
    if not outcome.examples:
        message = f"it has {outcome.length:,} tokens; the model reads {scorer.longest:,}"
        raise Refusal("E414", message, field=f"input.{at}", fix="shorten it")
    return outcome.examples[0]
