"""Records become examples: tokens, and how much the loss sees of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from tunesmith.data.answers import encode_judged
from tunesmith.data.config import DataConfig
from tunesmith.data.formats import Entry
from tunesmith.data.outcome import IMITATION, Outcome, end_of_text
from tunesmith.data.overlong import cut_turns, split_ids, split_turns
from tunesmith.data.prefix import View, find_views, whole_view
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import DataError, Fix, Where
from tunesmith.types import Completion, Conversation, Document, Example, Message, Task

__all__ = ["Entry", "Outcome", "encode", "encode_conversation", "encode_record", "turn_weights"]

TrainOn = Literal["all_assistant", "last_assistant", "completion", "all"]


def encode(entry: Entry, tokenizer: Tokenizer, settings: DataConfig, task: Task = IMITATION) -> list[Example]:
    """The examples of one record after the over-length policy; [] when it is dropped."""
    return encode_record(entry, tokenizer, settings, task).examples


def encode_record(entry: Entry, tokenizer: Tokenizer, settings: DataConfig, task: Task = IMITATION) -> Outcome:
    """As `encode`, with what happened. Raises DataError E064, E067-E070, E073, E212, E213, E218-E220 or E223 with the
    record's place, UsageError E217 for settings that make no sense for such records.
    """
    try:
        if isinstance(entry, Conversation):
            return _conversation(entry, tokenizer, settings)
        if isinstance(entry, Completion):
            return _completion(entry, tokenizer, settings)
        if isinstance(entry, Document):
            return _document(entry, tokenizer, settings)
        return encode_judged(entry, tokenizer, settings, task)
    except DataError as error:
        if error.diagnostic.where is None or error.diagnostic.where.file is None:
            error.at(Where(entry.file, entry.line))
        raise


def encode_conversation(conversation: Conversation, tokenizer: Tokenizer, train_on: TrainOn) -> Example:
    """One example for the whole conversation, its loss mask proven by the prefix law.

    Raises DataError E068 when the template rewrites earlier turns, so that one example cannot train them all.
    """
    views = _views(_with_weights(conversation, train_on), tokenizer, train_on)
    if len(views) > 1:
        raise DataError(
            "E068",
            f"the chat template rewrites earlier turns: they cannot be trained in one example ({len(views)} needed)",
            where=Where(conversation.file, conversation.line),
            fixes=[Fix("train on the last answer only", {"data.train_on": "last_assistant"})],
        )
    return _example(views[0], conversation)


def turn_weights(messages: Sequence[Message], train_on: TrainOn) -> list[float]:
    """The loss weight of each message: chosen by `train_on`, times the message's own weight."""
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if train_on == "all":
        chosen = set(range(len(messages)))
    else:
        chosen = set(answers if train_on == "all_assistant" else answers[-1:])
    own = [1.0 if message.weight is None else float(message.weight) for message in messages]
    return [weight if index in chosen else 0.0 for index, weight in enumerate(own)]


def _with_weights(conversation: Conversation, train_on: TrainOn) -> Conversation:
    weights = turn_weights(conversation.messages, train_on)
    weighted = [replace(message, weight=weight) for message, weight in zip(conversation.messages, weights, strict=True)]
    return replace(conversation, messages=tuple(weighted))


def _views(conversation: Conversation, tokenizer: Tokenizer, train_on: TrainOn) -> list[View]:
    weights = [message.weight or 0.0 for message in conversation.messages]
    if train_on == "all":
        return [whole_view(conversation, tokenizer, weights)]
    return find_views(conversation, tokenizer, weights)


def _conversation(conversation: Conversation, tokenizer: Tokenizer, settings: DataConfig) -> Outcome:
    outcome = Outcome()
    shielded = tokenizer.shield(conversation.messages, conversation.tools)
    outcome.note_control_text(shielded.found, settings)
    weighted = _with_weights(conversation, settings.train_on)
    views = _views(weighted, tokenizer, settings.train_on)
    outcome.notes["unrolled"] += len(views) - 1
    kept: list[View] = []
    for view in views:
        outcome.length = max(outcome.length, len(view.ids))
        outcome.notes["opened"] += sum(bool(turn.opening) for turn in view.turns)
        kept += (
            [view] if len(view.ids) <= settings.max_length else _shorten(view, weighted, tokenizer, settings, outcome)
        )
    for view in kept:
        outcome.notes["straddled"] += view.straddled
        outcome.notes["unstopped"] += view.unstopped
    return outcome.close([_example(view, conversation) for view in kept])


def _shorten(
    view: View, conversation: Conversation, tokenizer: Tokenizer, settings: DataConfig, outcome: Outcome
) -> list[View]:
    """Apply the over-length policy to one view of a conversation whose weights are explicit."""
    outcome.note_overlong(len(view.ids), settings)
    chosen = {turn.message for turn in view.turns}
    messages = [
        message if settings.train_on == "all" or index in chosen else replace(message, weight=0.0)
        for index, message in enumerate(conversation.messages[: view.count])
    ]
    part = replace(conversation, messages=tuple(messages))
    trained = sum(bool(message.weight) for message in messages)

    def render(shorter: Conversation) -> list[View]:
        return _views(shorter, tokenizer, settings.train_on)

    views: list[View] = []
    if settings.overlong == "cut_turns":
        views = cut_turns(part, settings.max_length, render)
        left = sum(len(found.turns) for found in views)
        outcome.notes["cut"] += bool(views)
        outcome.notes["turns_lost"] += 0 if settings.train_on == "all" else trained - left
    elif settings.overlong == "split":
        views, lost = split_turns(part, settings.max_length, render)
        outcome.notes["split"] += bool(views)
        outcome.notes["turns_lost"] += lost
    return views


def _completion(entry: Completion, tokenizer: Tokenizer, settings: DataConfig) -> Outcome:
    outcome = Outcome()
    outcome.note_control_text(tokenizer.control.find([entry.prompt, entry.completion]), settings)
    prompt = tokenizer.encode(entry.prompt, specials=False)
    answer = [*tokenizer.encode_after(entry.completion, prompt, entry.prompt), end_of_text(tokenizer)]
    ids = [*tokenizer.start_ids, *prompt, *answer]
    outcome.length = len(ids)
    if len(ids) > settings.max_length:
        outcome.note_overlong(len(ids), settings)
        return outcome.close([])
    first = len(tokenizer.start_ids) if settings.train_on == "all" else len(ids) - len(answer)
    return outcome.close([_plain_example(ids, first, entry)])


def _document(entry: Document, tokenizer: Tokenizer, settings: DataConfig) -> Outcome:
    outcome = Outcome()
    outcome.note_control_text(tokenizer.control.find(entry.text), settings)
    lead = tokenizer.start_ids
    ids = [*tokenizer.encode(entry.text, specials=False), end_of_text(tokenizer)]
    outcome.length = len(lead) + len(ids)
    pieces = [[*lead, *ids]]
    if outcome.length > settings.max_length:
        outcome.note_overlong(outcome.length, settings)
        pieces = split_ids(ids, lead, settings.max_length) if settings.overlong == "split" else []
        outcome.notes["split"] += bool(pieces)
    return outcome.close([_plain_example(piece, len(lead), entry) for piece in pieces])


def _example(view: View, conversation: Conversation) -> Example:
    return Example(view.ids, view.weights, conversation.file, conversation.line)


def _plain_example(ids: Sequence[int], first_trained: int, entry: Completion | Document) -> Example:
    weights = np.zeros(len(ids), dtype=np.float32)
    weights[max(1, first_trained) :] = 1  # nothing stands before the first token to predict it from
    return Example(np.asarray(ids, dtype=np.int32), weights, entry.file, entry.line)
