"""The thread that decodes, grammars and embeddings: what fails, fails alone."""

import math
import sys
import threading
import time
from collections import deque
from concurrent.futures import CancelledError

import pytest
import torch
from tests.unit.serve.running import eventually

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import TunesmithError
from tunesmith.rollout.choosing import Sampling
from tunesmith.rollout.orders import Order
from tunesmith.serve.grammar import Grammar, Grammars
from tunesmith.serve.metrics import BOUNDS, Histogram, Metrics
from tunesmith.serve.refusals import Refusal
from tunesmith.serve.worker import Worker


class Steps:
    """A scheduler that ends an order in one turn, or does what a test wants."""

    def __init__(self) -> None:
        self.waiting: deque[Order] = deque()
        self.failed: list[TunesmithError] = []
        self.live = self.pages = self.made = self.read = 0
        self.free = threading.Event()
        self.fault: Exception | None = None

    def turn(self) -> bool:
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        if self.free.is_set() and self.waiting:
            order = self.waiting.popleft()
            order.deliver(f"made {order.prompt[0]}")  # pyright: ignore[reportArgumentType]
        else:
            time.sleep(0.001)
        return bool(self.waiting)

    def fail(self, error: TunesmithError) -> None:
        self.failed.append(error)


@pytest.fixture
def steps():
    return Steps()


@pytest.fixture
def worker(steps):
    made = Worker({"m": steps}, queue=3, patience=0.2)
    made.start()
    yield made
    made.close()
    assert not made.thread.is_alive()


def order(heard: list, number: int = 1) -> Order:
    return Order("m", [number], Sampling(4), heard.append)


def test_orders_are_made_in_turn_and_a_full_queue_is_refused_whole(worker, steps):
    heard: list = []
    worker.submit([order(heard, 1), order(heard, 2)])
    with pytest.raises(Refusal, match="E415") as caught:
        worker.submit([order(heard, 3), order(heard, 4)])
    assert 1 <= int(caught.value.headers["Retry-After"]) <= 60
    steps.free.set()
    eventually(lambda: heard == ["made 1", "made 2"])


def test_what_waits_beyond_its_patience_is_refused(worker, steps):
    heard: list = []
    began = time.monotonic()
    worker.submit([order(heard)])
    eventually(lambda: bool(heard))
    assert time.monotonic() - began >= 0.2
    (error,) = heard
    assert error.diagnostic.code == "E486"
    assert "0.2 s" in str(error)
    steps.free.set()
    worker.submit([order(heard, 7)])
    eventually(lambda: heard[1:] == ["made 7"])


def test_work_that_waits_beyond_its_patience_is_refused_too(worker):
    held = threading.Event()
    first = worker.call(lambda: held.wait(5))
    second = worker.call(lambda: "never")
    time.sleep(0.3)
    held.set()
    assert first.result(5) is True
    with pytest.raises(Refusal, match="E486"):
        second.result(5)


def test_faults_end_what_they_meet_and_not_the_thread(worker, steps, caplog):
    heard: list = []
    for fault, code in ((RuntimeError("no memory"), "E425"), (TunesmithError("E151", "NaN"), "E151")):
        steps.fault = fault
        worker.submit([order(heard)])
        eventually(lambda code=code: [error.diagnostic.code for error in steps.failed][-1:] == [code])
    assert "no memory" in caplog.text
    steps.free.set()
    eventually(lambda: len(heard) == 2)

    def broken() -> None:
        raise KeyError("x")

    with pytest.raises(Refusal, match="E425"):
        worker.call(broken).result(5)
    with pytest.raises(TunesmithError, match="E414"):
        worker.call(lambda: (_ for _ in ()).throw(Refusal("E414", "long", fix="cut"))).result(5)
    assert worker.call(lambda: 3).result(5) == 3
    given_up = worker.call(lambda: time.sleep(0.05))
    gone = worker.call(lambda: "nobody waits")
    gone.cancel()
    given_up.result(5)
    with pytest.raises(CancelledError):
        gone.result(5)
    assert worker.thread.is_alive()


def test_after_its_end_everybody_hears_of_it(steps):
    heard: list = []
    worker = Worker({"m": steps}, queue=9)
    worker.submit([order(heard)])
    left = worker.call(lambda: 1)
    cancelled = worker.call(lambda: 2)
    cancelled.cancel()
    worker.closing = True
    worker.start()
    worker.thread.join(5)
    assert [error.diagnostic.code for error in (*heard, *steps.failed)] == ["E426", "E426"]
    with pytest.raises(Refusal, match="E426"):
        left.result(5)
    with pytest.raises(Refusal, match="E426"):
        worker.submit([order(heard)])
    assert worker.patience == math.inf


@pytest.fixture(scope="module")
def grammars(tiny):
    pytest.importorskip("llguidance")
    tokenizer = load_tokenizer(tiny)
    return Grammars(tokenizer, frozenset(tokenizer.eos_ids), 410)


def written(grammars, schema: dict, seed: int = 0) -> str:
    """What random choices among the allowed tokens come to."""
    grammar = Grammar(grammars.for_schema(schema, "response_format").deep_copy())
    draw, ids = torch.Generator().manual_seed(seed), []
    for _ in range(300):
        allowed = grammar.allowed(410)
        assert not allowed[400:].any()  # beyond the vocabulary, where the matrix of the model is larger
        token = int(torch.multinomial(allowed.float(), 1, generator=draw))
        if token == 2:
            break
        ids.append(token)
        if grammar.take(token):
            break
    return grammars.tokenizer.decode(ids)


@pytest.mark.parametrize("schema", [{"enum": ["a", "b"]}, {"type": "boolean"}, {"const": {"x": 1}}])
def test_any_choice_of_allowed_tokens_keeps_the_schema(grammars, schema):
    import json

    for seed in range(3):
        found = json.loads(written(grammars, schema, seed))
        assert found in schema.get("enum", [True, False]) if "const" not in schema else found == schema["const"]


def test_tokens_that_break_a_grammar_and_schemas_that_are_none_are_refused(grammars):
    grammar = Grammar(grammars.for_schema({"type": "boolean"}, "f").deep_copy())
    wrong = int((~grammar.allowed(410)).nonzero()[40])
    with pytest.raises(Refusal, match="E418"):
        grammar.take(wrong)
    for schema in ({"type": "objekt"}, {"$ref": "#/nowhere"}, {"pattern": "(", "type": "string"}):
        with pytest.raises(Refusal, match="E418") as caught:
            grammars.for_schema(schema, "response_format.json_schema.schema")
        assert caught.value.diagnostic.where.field == "response_format.json_schema.schema"
    with pytest.raises(Refusal, match="E418"):
        grammars.for_call("start: nothing_of_the_kind\n")


ENDLESS = [
    {"$ref": "#"},
    {"allOf": [{"$ref": "#"}]},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
]


@pytest.mark.parametrize("schema", ENDLESS, ids=["itself", "all of itself", "two"])
def test_a_schema_that_refers_to_itself_tells_nothing_of_the_library(grammars, schema):
    with pytest.raises(Refusal, match=r"E418.*refers to itself without an end") as caught:
        grammars.for_schema(schema, "f")
    assert "state" not in caught.value.diagnostic.message
    with pytest.raises(Refusal, match="E418") as caught:
        Grammar(grammars.for_schema({"type": "boolean"}, "f").deep_copy()).take(0)
    assert "<state>" not in caught.value.diagnostic.message


def test_without_the_library_the_command_is_told(grammars, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(Refusal, match=r"tunesmith\[serve\]"):
        grammars.for_schema({"type": "boolean"}, "f")


def test_figures_are_in_the_form_of_prometheus(worker):
    class Counted:
        pass

    counted = Counted()
    counted.worker = worker
    metrics = Metrics(counted)
    for seconds in (0.02, 0.3, 500.0):
        metrics.whole.add(seconds)
    metrics.requests["/v1/models", 200] += 2
    lines = metrics.text().splitlines()
    assert 'tunesmith_requests_total{route="/v1/models",status="200"} 2' in lines
    assert 'tunesmith_request_seconds_bucket{le="0.025"} 1' in lines
    assert 'tunesmith_request_seconds_bucket{le="+Inf"} 3' in lines
    assert f'tunesmith_request_seconds_bucket{{le="{BOUNDS[-1]}"}} 2' in lines
    assert "tunesmith_request_seconds_count 3" in lines
    for _ in range(2000):
        metrics.speed(5)
    assert len(metrics.marks) < 2100
    assert sum(Histogram().counts) == 0
