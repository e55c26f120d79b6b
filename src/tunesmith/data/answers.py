"""Answers that share a prompt become one example: the prompt's tokens once, then each answer's, split in token ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tunesmith.data.config import DataConfig
from tunesmith.data.judgements import answers_of
from tunesmith.data.labelled import encode_labelled
from tunesmith.data.outcome import Outcome, control_text, end_of_text
from tunesmith.data.overlong import exchanges_of, join
from tunesmith.data.prefix import excerpt, find_answer, parting
from tunesmith.data.steps import encode_process
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import DataError, Fix, UsageError, Where
from tunesmith.types import (
    Conversation,
    Example,
    Feedback,
    Labelled,
    Pair,
    Process,
    Ranking,
    Reads,
    Task,
    Turns,
)

Judged = Pair | Feedback | Ranking | Labelled | Process


@dataclass(frozen=True, slots=True)
class Said:
    """A prompt and one answer as tokens; `trained` marks what the assistant wrote, `before` is the prompt's text."""

    ids: np.ndarray  # int32 (T,)
    trained: np.ndarray  # float32 (T,)
    begin: int  # the answer's first token
    before: str
    notes: Counter[str]


def encode_judged(entry: Judged, tokenizer: Tokenizer, settings: DataConfig, task: Task) -> Outcome:
    """As `encode_record`, for records that judge or compare."""
    check_settings(settings)
    if isinstance(entry, Labelled):
        return encode_labelled(entry, tokenizer, settings, task)
    if isinstance(entry, Process):
        return encode_process(entry, tokenizer, settings, task)
    outcome = Outcome()
    answers, labels = rated(entry)
    outcome.note_control_text(control_text(tokenizer, [entry.prompt, *answers], entry.tools), settings)
    every = settings.train_on == "all_assistant" and task.reads == "logprobs"  # turns of an answer, or the last one

    def say(prompt: Turns) -> list[Said]:
        return say_all(replace(entry, prompt=prompt), answers, tokenizer, every=every)

    said = say(entry.prompt)
    outcome.length = max(len(one.ids) for one in said)
    if outcome.length > settings.max_length:
        outcome.note_overlong(outcome.length, settings)
        said = _shortened(entry.prompt, settings.max_length, say) if settings.overlong == "cut_turns" else []
        outcome.notes["cut"] += bool(said)
    if not said:
        return outcome.close([])
    if task.reads == "logprobs":  # how answers begin and stop does not matter to what reads their last token
        for one in said:
            outcome.notes.update(one.notes)
    if not all(one.trained.any() for one in said):
        outcome.dropped = "zero_trained"
        return outcome.close([])
    example = join_answers(said, labels, entry, task.reads)
    if len(answers) > 1 and ((len(set(labels)) == 1 and _scored(entry)) or not differ(example)):
        outcome.notes["identical"] += 1
        if settings.on_bad == "skip":
            outcome.dropped = "identical"
            return outcome.close([])
    return outcome.close([example])


def rated(entry: Pair | Feedback | Ranking) -> tuple[tuple[Turns, ...], tuple[float, ...]]:
    """The answers, best first, and what the record says of each."""
    if isinstance(entry, Pair):
        return (entry.chosen, entry.rejected), (entry.margin or 0.0, 0.0)
    if isinstance(entry, Feedback):
        return (entry.answer,), (float(entry.good),)
    count = len(entry.answers)
    return entry.answers, entry.scores or tuple(map(float, range(count - 1, -1, -1)))


def check_settings(settings: DataConfig) -> None:
    """Settings that make no sense where an answer is judged as a whole (UsageError E217)."""
    if settings.overlong == "split":
        raise UsageError(
            "E217",
            "data.overlong=split has no meaning here: a judged answer is one piece, and so is what it answers",
            where=Where(field="data.overlong"),
            fixes=[
                Fix("data.overlong=drop", {"data.overlong": "drop"}),
                Fix("data.overlong=cut_turns", {"data.overlong": "cut_turns"}, effect="shortens the prompts of chats"),
            ],
        )
    if settings.train_on == "all":
        raise UsageError(
            "E217",
            "data.train_on=all has no meaning here: only answers are judged, never prompts",
            where=Where(field="data.train_on"),
            fixes=[Fix("data.train_on=all_assistant", {"data.train_on": "all_assistant"})],
        )


def say_all(
    entry: Pair | Feedback | Ranking, answers: Sequence[Turns], tokenizer: Tokenizer, *, every: bool
) -> list[Said]:
    """Each answer after the prompt, as the model would read it alone; with `every` turn of it trained, or the last."""
    if isinstance(entry.prompt, str):
        return [_say_text(entry.prompt, answer, tokenizer) for answer in answers if isinstance(answer, str)]
    found = []
    for answer in answers:
        assert not isinstance(answer, str), "the readers turn texts after a chat into turns"
        chat = Conversation((*entry.prompt, *answer), entry.file, entry.line, entry.tools)
        found.append(_say_chat(chat, len(entry.prompt), tokenizer, every))
    for one in found[1:]:
        if one.before != found[0].before:
            raise _other_prompt(found[0].before, one.before, entry)
    return found


def _say_chat(chat: Conversation, first: int, tokenizer: Tokenizer, every: bool) -> Said:
    """A chat whose answer begins with message `first`; its assistant's turns are trained."""
    view, before = find_answer(chat, tokenizer, answer_weights(chat, first, every), first)
    opened = sum(bool(turn.opening) for turn in view.turns if turn.weight)
    notes = Counter(straddled=view.straddled, unstopped=view.unstopped, opened=opened)
    return Said(view.ids, view.weights, view.begins[0], before, notes)


def answer_weights(chat: Conversation, first: int, every: bool) -> list[float]:
    """1 for the assistant's turns of the answer that are trained, 0 for all else (E220 for other weights)."""
    weights = [0.0] * len(chat.messages)
    chosen = [at for at in range(first, len(weights)) if chat.messages[at].role == "assistant"]
    for at in chosen if every else chosen[-1:]:
        own = chat.messages[at].weight
        if own not in (None, 0.0, 1.0):
            raise DataError(
                "E220",
                f"turn {at - first + 1} of an answer has the weight {own:g}; a judged answer counts as a whole",
                where=Where(chat.file, chat.line),
                fixes=["leave the weight out, or write 0 for a turn that the assistant did not write"],
            )
        weights[at] = 1.0 if own is None else own
    return weights


def join_answers(
    said: Sequence[Said], labels: Sequence[float], entry: Pair | Feedback | Ranking, reads: Reads
) -> Example:
    """One example: the tokens that all share before their answers, then what is left of each."""
    cut = min(one.begin for one in said)
    cut = min([cut, *(_same_tokens(said[0].ids, one.ids) for one in said[1:])])
    if cut == 0:
        raise _other_prompt(said[0].before, said[-1].before, entry)
    parts = [one.ids[cut:] for one in said]
    tokens = np.concatenate([said[0].ids[:cut], *parts])
    weights = [read_weights(one.trained, reads)[cut:] for one in said]
    cuts = cut + np.cumsum([0, *map(len, parts[:-1])])
    return Example(
        tokens,
        np.concatenate([np.zeros(cut, dtype=np.float32), *weights]),
        entry.file,
        entry.line,
        cuts=tuple(cuts.tolist()),
        labels=tuple(labels),
    )


def read_weights(trained: np.ndarray, reads: Reads) -> np.ndarray:
    """What the loss reads of one sequence: its trained tokens, or with values the last token of all."""
    if reads == "logprobs":
        return trained
    last = np.zeros_like(trained)
    last[-1] = 1
    return last


def differ(example: Example) -> bool:
    """Whether any two answers of an example differ in a token."""
    first, *others = answers_of(example)
    return any(not np.array_equal(first, other) for other in others)


def _scored(entry: Pair | Feedback | Ranking) -> bool:
    return isinstance(entry, Ranking) and entry.scores is not None


def _say_text(prompt: str, answer: str, tokenizer: Tokenizer) -> Said:
    """Plain text without a template; the answer ends with the token that ends a text."""
    ids = tokenizer.encode(prompt, specials=False)
    own = tokenizer.encode_after(answer, ids, prompt)
    ending = [end_of_text(tokenizer)] if tokenizer.eos_id is not None or not tokenizer.end_ids else tokenizer.end_ids
    whole = [*tokenizer.start_ids, *ids, *own, *ending]
    begin = max(1, len(tokenizer.start_ids) + len(ids))
    trained = np.zeros(len(whole), dtype=np.float32)
    trained[begin:] = 1
    return Said(np.asarray(whole, dtype=np.int32), trained, begin, prompt, Counter())


def _shortened(prompt: Turns, limit: int, say: Callable[[Turns], list[Said]]) -> list[Said]:
    """All answers after the prompt without its oldest exchanges, as few as make the longest fit; [] when none do."""
    if isinstance(prompt, str):
        return []
    head, exchanges = exchanges_of(prompt)
    low, high = 1, len(exchanges)
    found: list[Said] = []
    while low < high:
        middle = (low + high) // 2
        said = say((*head, *join(exchanges[middle:])))
        if max(len(one.ids) for one in said) > limit:
            low = middle + 1
        else:
            found, high = said, middle
    return found


def _same_tokens(one: np.ndarray, other: np.ndarray) -> int:
    shortest = min(len(one), len(other))
    differing = np.flatnonzero(one[:shortest] != other[:shortest])
    return int(differing[0]) if len(differing) else shortest


def _other_prompt(one: str, other: str, entry: Pair | Feedback | Ranking) -> DataError:
    begin = max(0, parting(one, other) - 30)
    return DataError(
        "E212",
        "the chat template writes the prompt otherwise for each answer, so they cannot share it",
        where=Where(entry.file, entry.line),
        evidence=[f"before one answer: ...{excerpt(one[begin:])}", f"before another:    ...{excerpt(other[begin:])}"],
        fixes=[
            "write the answers alike: each with a thought or none, each with tool calls or none",
            "leave such records out: data.on_bad=skip",
        ],
    )
