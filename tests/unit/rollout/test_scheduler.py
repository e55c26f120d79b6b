"""Orders that join and leave: each has the answer that it would have alone, and every page comes back."""

import random

import pytest
import torch
from tests.unit.rollout.test_generator import load

from tunesmith.errors import TunesmithError
from tunesmith.rollout.decoding import decoding
from tunesmith.rollout.engine.engine import TOKENS, Engine
from tunesmith.rollout.generator import Sampling, generate, stop_ids
from tunesmith.rollout.orders import Order, Piece, Speaker
from tunesmith.rollout.scheduler import BatchScheduler, EngineScheduler, Scheduler, pages_of

PROMPTS = [[5, 9, 200], [17], list(range(20, 44)), [300, 301, 4], [120] * 40, list(range(5, 90))]


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def loaded(request, tmp_path_factory):
    model, tokenizer = load(tmp_path_factory.mktemp("scheduler"), request.param)
    with decoding(model) as view:
        yield view, tokenizer, request.param == "llama"


def scheduler_for(loaded, batch_size: int, pages: int = 1000) -> Scheduler:
    model, tokenizer, has_engine = loaded
    speaker = Speaker(tokenizer, stop_ids(model, tokenizer), 512)
    if has_engine:
        return EngineScheduler(Engine(model), speaker, batch_size, pages)
    return BatchScheduler(lambda _: model, {"m": speaker}, batch_size)


def ordered(prompt: list[int], heard: list, count: int = 1, **settings) -> Order:
    sampling = Sampling(**{"max_new_tokens": 20, "temperature": 0.8, "seed": len(prompt), **settings})
    return Order("m", prompt, sampling, heard.append, count)


def text(heard: list[Piece], index: int = 0) -> str:
    return "".join(piece.text for piece in heard if piece.index == index)


def test_answers_do_not_depend_on_company_or_on_when_they_join(loaded):
    model, tokenizer, _ = loaded
    scheduler = scheduler_for(loaded, 5)
    rng = random.Random(3)
    heard: list[list[Piece]] = [[] for _ in range(12)]
    orders = [
        ordered(PROMPTS[at % 6], heard[at], 1 + at % 3, max_new_tokens=5 + 3 * at, temperature=(at % 2) * 0.9)
        for at in range(12)
    ]
    left = list(orders)
    with torch.no_grad():
        while left or scheduler.waiting or scheduler.live:
            for _ in range(rng.randrange(3)):
                if left:
                    scheduler.waiting.append(left.pop(0))
            scheduler.turn()
            assert scheduler.live <= 5
    assert scheduler.pages == 0
    for order, own in zip(orders, heard, strict=True):
        wanted = generate(model, tokenizer, [order.prompt] * order.count, order.sampling)
        for index, answer in enumerate(wanted):
            assert text(own, index) == answer.text
            (last,) = [piece for piece in own if piece.index == index and piece.reason]
            assert (last.made, last.reason) == (len(answer.tokens), "stop" if answer.finished else "length")
    assert scheduler.made == sum(len(piece_tokens(own)) for own in heard)


def piece_tokens(heard: list[Piece]) -> list[int]:
    """One entry for every token that was made."""
    return [0] * sum(piece.made for piece in heard if piece.reason)


def test_cancelled_orders_leave_wherever_they_stand(loaded):
    scheduler = scheduler_for(loaded, 2)
    heard: list[list[Piece]] = [[], [], []]
    orders = [ordered(PROMPTS[at], heard[at], max_new_tokens=200, temperature=0.0) for at in range(3)]
    scheduler.waiting.extend(orders)
    with torch.no_grad():
        for _ in range(5):
            scheduler.turn()
        orders[0].cancelled = orders[2].cancelled = True
        for _ in range(3):
            scheduler.turn()
        assert scheduler.live <= 1
        assert not [order for order in scheduler.waiting if order.cancelled] or not loaded[2]
        orders[1].cancelled = True
        while scheduler.turn():
            pass
    assert (scheduler.live, scheduler.pages, len(scheduler.waiting)) == (0, 0, 0)
    assert not heard[2]


def test_orders_wait_for_pages_and_rows(loaded):
    if not loaded[2]:
        pytest.skip("without the engine there are no pages")
    need = pages_of(ordered([5] * 10, []))
    scheduler = scheduler_for(loaded, 8, pages=2 * need)
    heard: list[list[Piece]] = [[] for _ in range(5)]
    scheduler.waiting.extend(
        ordered(
            [5 + at] * 10,
            own,
        )
        for at, own in enumerate(heard)
    )
    with torch.no_grad():
        while scheduler.turn():
            assert scheduler.live <= 2
            assert scheduler.pages <= 2 * need
    assert all(own[-1].reason for own in heard)


def test_long_prompts_are_read_apart_and_equal_ones_once(loaded):
    if not loaded[2]:
        pytest.skip("of the engine")
    scheduler = scheduler_for(loaded, 32)
    heard: list[Piece] = []
    long = [7] * 500
    scheduler.waiting.extend(ordered([8 + at, *long[1:]], heard, max_new_tokens=1) for at in range(12))
    with torch.no_grad():
        scheduler.turn()
        assert len(scheduler.waiting) == 12 - TOKENS // 500
        while scheduler.turn():
            pass
        before = scheduler.read
        scheduler.waiting.extend(ordered(long, heard, max_new_tokens=2) for _ in range(4))
        scheduler.turn()
    assert scheduler.read - before == 500


def test_a_constraint_that_fails_ends_its_order_alone(loaded):
    class Broken:
        def allowed(self, count):
            raise TunesmithError("E418", "no token fits")

        def take(self, token):
            return False

    scheduler = scheduler_for(loaded, 4)
    good: list[Piece] = []
    bad: list = []
    broken = ordered([5, 6], bad)
    broken.constraint = Broken
    scheduler.waiting.extend([broken, ordered([5, 6], good)])
    with torch.no_grad():
        while scheduler.turn():
            pass
    assert [error.diagnostic.code for error in bad] == ["E418"]
    assert good[-1].reason is not None
    assert scheduler.pages == 0
