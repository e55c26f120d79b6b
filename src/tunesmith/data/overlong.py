"""What happens to conversations that are too long: whole turns are cut or spread over several examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tunesmith.data.prefix import View
from tunesmith.types import Conversation, Message

Render = Callable[[Conversation], Sequence[View]]  # weights of the messages are explicit


def cut_turns(conversation: Conversation, limit: int, render: Render) -> list[View]:
    """Views without the oldest exchanges, as few of them as make it fit; [] when the last exchange is too long.

    The messages before the first user stay; an exchange is a user's message and all that answers it, so roles keep
    alternating and no header or stop token is cut.
    """
    head, exchanges = exchanges_of(conversation.messages)
    low, high = 1, len(exchanges)  # fewest exchanges to drop
    found: list[View] = []
    while low < high:
        middle = (low + high) // 2
        views = _fitting(conversation, [*head, *join(exchanges[middle:])], limit, render)
        if views is None:
            low = middle + 1
        else:
            found, high = views, middle
    return found


def split_turns(conversation: Conversation, limit: int, render: Render) -> tuple[list[View], int]:
    """Consecutive runs of exchanges that fit, each after the messages before the first user.

    Also how many trained messages are lost because their exchange alone is too long.
    """
    head, exchanges = exchanges_of(conversation.messages)
    views: list[View] = []
    lost = start = 0
    while start < len(exchanges):
        found: list[View] = []
        low, high = start, len(exchanges)  # the furthest end that fits
        while low < high:
            middle = (low + high + 1) // 2
            fitting = _fitting(conversation, [*head, *join(exchanges[start:middle])], limit, render)
            if fitting is None:
                high = middle - 1
            else:
                found, low = fitting, middle
        if low == start:
            lost += sum(bool(message.weight) for message in exchanges[start])
            low += 1
        views += found
        start = low
    return views, lost


def split_ids(ids: Sequence[int], lead: Sequence[int], limit: int) -> list[list[int]]:
    """Consecutive pieces of `ids`, each led by `lead` (the BOS, if any) and at most `limit` long; no id is lost."""
    room = max(1, limit - len(lead))
    return [[*lead, *ids[start : start + room]] for start in range(0, len(ids), room)]


def _fitting(conversation: Conversation, messages: Sequence[Message], limit: int, render: Render) -> list[View] | None:
    views = render(replace(conversation, messages=tuple(messages)))
    return None if any(len(view.ids) > limit for view in views) else [view for view in views if view.weights.any()]


def exchanges_of(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """The messages before the first user, then the runs that begin with a user's message."""
    head: list[Message] = []
    exchanges: list[list[Message]] = []
    for message in messages:
        if message.role == "user" and not (exchanges and exchanges[-1][-1].role == "user"):
            exchanges.append([])
        (exchanges[-1] if exchanges else head).append(message)
    return head, exchanges


def join(exchanges: Sequence[Sequence[Message]]) -> list[Message]:
    return [message for exchange in exchanges for message in exchange]
