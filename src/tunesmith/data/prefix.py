"""The prefix law: which tokens of a rendered conversation an assistant would have written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tunesmith.data.control import BREAK
from tunesmith.data.template import Ask, Failure, text_of
from tunesmith.data.tokenizer import Shielded, Tokenizer
from tunesmith.errors import DataError, Fix, Where
from tunesmith.types import Conversation

_STAND_IN = "\ue0f8content\ue0f9"


@dataclass(frozen=True, slots=True)
class Turn:
    """An assistant's turn in a text: characters `start` to `end` (after its stop token) are what it wrote."""

    message: int
    start: int
    end: int
    weight: float
    opening: str = ""  # what the generation prompt writes and this turn lacks


@dataclass(frozen=True, slots=True)
class View:
    """The first `count` messages as tokens, with the loss weight of each, trained on `turns`."""

    count: int
    ids: np.ndarray  # int32 (T,)
    weights: np.ndarray  # float32 (T,)
    turns: tuple[Turn, ...] = ()
    straddled: int = 0  # turns whose first token also holds text of the prompt and is therefore not trained
    unstopped: int = 0  # turns that end without an end-of-text token
    text: str = ""  # what was encoded; control texts of users are broken in it
    begins: tuple[int, ...] = ()  # the first token of each turn


def find_views(conversation: Conversation, tokenizer: Tokenizer, weights: Sequence[float]) -> list[View]:
    """Tokens and masks that train each assistant turn of weight > 0 exactly once, in the context it is written in.

    A turn is what the template adds between the generation prompt and the turn's stop token. Turns that the whole
    conversation repeats unchanged share one view; a turn that the template rewrites later (a dropped thought) gets a
    view that ends with it. Raises DataError E064, E068 or E069 with the text where no such proof exists.
    """
    trained = _trained(conversation, weights)
    law, whole = _open(conversation, tokenizer, trained)
    count = len(conversation.messages)
    shared: list[Turn] = []
    own: list[View] = []
    for index in trained:
        turn = law.find_turn(index, weights[index])
        alone = law.text(index + 1, False)
        if whole[: turn.end] == alone[: turn.end]:
            shared.append(turn)
        else:
            own.append(make_view(tokenizer, alone, index + 1, [turn]))
    if shared or not own:
        own.append(make_view(tokenizer, whole, count, shared))
    return own


def find_answer(
    conversation: Conversation, tokenizer: Tokenizer, weights: Sequence[float], first: int
) -> tuple[View, str]:
    """The whole conversation, trained on its turns from message `first` on, and the text that stands before that one.

    Message `first` is the first of the view's turns, even where it is not trained.
    Raises DataError E219 where the template rewrites a trained turn (or what stands before the answer) once more turns
    follow, so that one sequence cannot train the answer, and what `find_views` raises.
    """
    trained = _trained(conversation, weights)
    law, whole = _open(conversation, tokenizer, sorted({first, *trained}))
    turns: list[Turn] = []
    start = 0
    for index in sorted({first, *trained}):
        turn = law.find_turn(index, weights[index])
        alone = law.text(index + 1, False)
        if index == first:
            start = turn.start
        fixed = turn.end if weights[index] else start
        if whole[:fixed] != alone[:fixed]:
            raise law.rewritten(index, alone, whole)
        turns.append(turn)
    return make_view(tokenizer, whole, len(conversation.messages), turns), whole[:start]


def _trained(conversation: Conversation, weights: Sequence[float]) -> list[int]:
    return [
        index
        for index, message in enumerate(conversation.messages)
        if message.role == "assistant" and weights[index] > 0
    ]


def _open(conversation: Conversation, tokenizer: Tokenizer, turns: Sequence[int]) -> tuple[_Law, str]:
    """The law of a conversation whose whole text holds what was not said by the assistant, and that text."""
    shielded = tokenizer.shield(conversation.messages, conversation.tools)
    count = len(conversation.messages)
    asks = [Ask(count, False)]
    for index in turns:
        asks += [Ask(index, True), Ask(index + 1, False)]
    law = _Law(conversation, tokenizer, shielded, asks)
    whole = law.text(count, False)
    law.check_others(whole)
    return law, whole


def whole_view(conversation: Conversation, tokenizer: Tokenizer, weights: Sequence[float]) -> View:
    """Every token trained, with the weight of the message it belongs to."""
    shielded = tokenizer.shield(conversation.messages, conversation.tools)
    count = len(conversation.messages)
    weighted = [index for index in range(count) if weights[index] != 1]
    asks = [Ask(count, False)]
    for index in weighted:
        asks += [Ask(index, False), Ask(index + 1, False)]
    law = _Law(conversation, tokenizer, shielded, asks)
    whole = law.text(count, False)
    law.check_tools(whole)
    for index in range(count):
        law.check_kept(index, whole, "")
    turns = [Turn(-1, 0, len(whole), 1.0)]
    for index in weighted:
        before, after = law.text(index, False), law.text(index + 1, False)
        for text in (before, after):
            if not whole.startswith(text):
                raise law.broken(index, text, whole)
        turns.append(Turn(index, len(before), len(after), weights[index]))
    return replace(make_view(tokenizer, whole, count, turns), unstopped=0)


def make_view(tokenizer: Tokenizer, text: str, count: int, turns: Sequence[Turn]) -> View:
    """Map turns from characters to tokens.

    A token is trained when it starts inside the turn. One that begins in the prompt and ends in the turn is not: the
    model is given the prompt's tokens and never gets to write it.
    """
    tokens = tokenizer.encode_rendered(text)
    weights = np.zeros(len(tokens.ids), dtype=np.float32)
    straddled = unstopped = 0
    begins: list[int] = []
    for turn in turns:
        end = _stop_after(text, turn.end, tokenizer)
        first, last = np.searchsorted(tokens.starts, [turn.start, end])
        weights[first:last] = turn.weight
        begins.append(int(first))
        if not turn.weight:
            continue
        straddled += int(first > 0 and turn.start < tokens.ends[first - 1])
        unstopped += int(last == first or tokens.ids[last - 1] not in tokenizer.eos_ids)
    weights[:1] = 0
    ids = np.asarray(tokens.ids, dtype=np.int32)
    return View(count, ids, weights, tuple(turns), straddled, unstopped, text, tuple(begins))


class _Law:
    """The renders of one conversation and what can be proven from them."""

    def __init__(self, conversation: Conversation, tokenizer: Tokenizer, shielded: Shielded, asks: list[Ask]) -> None:
        self.tokenizer = tokenizer
        self.shielded = shielded
        self.where = Where(conversation.file, conversation.line)
        self._known: dict[Ask, str | Failure] = {}
        self._render(asks)

    def text(self, count: int, add_generation_prompt: bool) -> str:
        ask = Ask(count, add_generation_prompt)
        if ask not in self._known:
            self._render([ask])
        return text_of(self._known[ask], self.where)

    def find_turn(self, index: int, weight: float) -> Turn:
        prompt, text = self.text(index, True), self.text(index + 1, False)
        opening = ""
        if text.startswith(prompt):
            start = len(prompt)
        else:
            start, opening = self._after_header(index, prompt, text)
        end = _end_of_turn(text, start, self.tokenizer)
        self.check_kept(index, text[start:end], prompt[-64:])
        return Turn(index, start, end, weight, opening)

    def _after_header(self, index: int, prompt: str, text: str) -> tuple[int, str]:
        """Where the content begins, found by rendering another content in its place; and what only the prompt has."""
        header = self._header(index)
        if header is None or not text.startswith(header):
            raise self.broken(index, prompt, text)
        before = self.text(index, False)
        asked = prompt.removeprefix(before)
        if index == 0 and asked and header.endswith(asked):  # a template that writes its system message before any turn
            return len(header), ""
        if prompt.startswith(header):  # the generation prompt goes on, such as with an opened thought
            return len(header), prompt[len(header) :]
        if prompt.startswith(before) and header.startswith(before):  # both differ in the header alone
            return len(header), asked
        raise self.broken(index, prompt, text)

    def _header(self, index: int) -> str | None:
        messages = list(self.shielded.messages)
        messages[index] = {**messages[index], "content": _STAND_IN}
        changed = replace(self.shielded, messages=messages)
        text = text_of(self.tokenizer.render_prefixes(changed, [Ask(index + 1, False)])[0], self.where)
        header, *rest = text.split(_STAND_IN)
        return header if len(rest) == 1 else None

    def check_others(self, whole: str) -> None:
        """Tools and all messages but the assistant's must be in the text (a template may ignore system messages)."""
        self.check_tools(whole)
        for index, message in enumerate(self.shielded.messages):
            if message["role"] != "assistant":
                self.check_kept(index, whole, "")

    def check_tools(self, whole: str) -> None:
        """Refuse a text that does not name a tool of the record."""
        names = [_function_name(tool) for tool in self.shielded.tools]
        missing = [name for name in names if name not in whole]
        if missing:
            raise DataError(
                "E069",
                f"the chat template leaves out the tool {missing[0].replace(BREAK, '')!r}",
                where=self.where,
                evidence=[f"rendered: {excerpt(whole)}"],
                fixes=["use a model whose template knows tools", "remove the tools from the records"],
            )

    def check_kept(self, index: int, text: str, opening: str) -> None:
        """Refuse a text that lacks a message's content or tool calls; white space may differ."""
        message = self.shielded.messages[index]
        content: str = message["content"]
        kept = content.strip() in text or _contains(text, content, opening)
        if not kept and message["role"] == "tool":
            kept = _contains(text, json.dumps(content, ensure_ascii=False)[1:-1], "")
        names = [_function_name(call) for call in message.get("tool_calls", ())]
        missing = [name for name in names if name not in text]
        if kept and not missing:
            return
        what = f"the call of {missing[0]!r}" if kept else f"text of the {message['role']} message"
        raise DataError(
            "E069",
            f"the chat template leaves out {what} (message {index + 1})",
            where=self.where,
            evidence=[f"message:  {excerpt(content)}", f"rendered: {excerpt(text)}"],
            fixes=[
                "give the message the form this template expects",
                "put a template that keeps it into the model folder as chat_template.jinja",
            ],
        )

    def broken(self, index: int, expected: str, text: str) -> DataError:
        begin = max(0, parting(expected, text) - 30)
        return DataError(
            "E068",
            f"the chat template rewrites what stands before message {index + 1}, so its tokens cannot be told apart",
            where=self.where,
            evidence=[
                f"before the turn: ...{excerpt(expected[begin:])}",
                f"with the turn:   ...{excerpt(text[begin:])}",
            ],
            fixes=[
                "use the template of the model's publisher",
                Fix("train on the last answer only", {"data.train_on": "last_assistant"}),
            ],
        )

    def rewritten(self, index: int, alone: str, whole: str) -> DataError:
        """E219: a turn of the answer, or what stands before it, is written otherwise once the answer goes on."""
        begin = max(0, parting(alone, whole) - 30)
        return DataError(
            "E219",
            f"the chat template rewrites message {index + 1} once later turns of the answer follow",
            where=self.where,
            evidence=[
                f"as the last turn: ...{excerpt(alone[begin:])}",
                f"in the whole:     ...{excerpt(whole[begin:])}",
            ],
            fixes=[
                Fix("train the last turn of each answer only", {"data.train_on": "last_assistant"}),
                "leave such records out: data.on_bad=skip",
            ],
        )

    def _render(self, asks: list[Ask]) -> None:
        self._known.update(zip(asks, self.tokenizer.render_prefixes(self.shielded, asks), strict=True))


def _function_name(entry: Any) -> str:
    """The name in a tool or a call, with or without the wrapper `function`; empty when it has none."""
    if not isinstance(entry, dict):
        return ""
    function = entry.get("function")
    return str((function if isinstance(function, dict) else entry).get("name", ""))


def _end_of_turn(text: str, start: int, tokenizer: Tokenizer) -> int:
    """The end of the turn's stop token: of the control tokens that close the text, the first that ends a generation.

    Where none does it is the last of them, and without any the whole text (its last line break may be the stop).
    """
    control = tokenizer.control.ids
    endings = tuple(control)
    place = len(text)
    ends: list[int] = []
    while True:
        stripped = len(text[start:place].rstrip()) + start
        if not text.endswith(endings, start, stripped):
            break
        token = max((known for known in endings if text.endswith(known, start, stripped)), key=len)
        if control[token] in tokenizer.eos_ids:
            ends.clear()
        if not ends or control[token] in tokenizer.eos_ids:
            ends.append(stripped)
        place = stripped - len(token)
    return ends[-1] if ends else len(text)


def _stop_after(text: str, end: int, tokenizer: Tokenizer) -> int:
    """The end of an end-of-text token that follows a turn without one, as where a next turn's header is the stop."""
    control, eos = tokenizer.control.ids, tokenizer.eos_ids
    stops = [known for known, id in control.items() if id in eos]
    if any(text.endswith(stop, 0, end) for stop in stops):
        return end
    following = end + len(text[end:]) - len(text[end:].lstrip())
    found = [stop for stop in stops if text.startswith(stop, following)]
    return following + len(max(found, key=len)) if found else end


def _contains(text: str, content: str, opening: str) -> bool:
    """Whether `text` holds `content` but for white space; its beginning may stand at the end of `opening`."""
    got, wanted, opened = ("".join(part.split()) for part in (text, content, opening))
    if wanted in got:
        return True
    for size in range(min(len(opened), len(wanted) - 1), 0, -1):
        if opened.endswith(wanted[:size]) and wanted[size:] in got:
            return True
    return False


def parting(one: str, other: str) -> int:
    """Where two texts begin to differ."""
    shortest = min(len(one), len(other))
    return next((at for at in range(shortest) if one[at] != other[at]), shortest)


def excerpt(text: str) -> str:
    shown = json.dumps(text.replace(BREAK, ""), ensure_ascii=False)
    return shown if len(shown) <= 160 else shown[:110] + " ... " + shown[-45:]
