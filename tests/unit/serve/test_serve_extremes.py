"""Settings at and beyond their ends: whatever one request asks, the answers made beside it are as if it were not."""

import json
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest
from tests.unit.serve.running import eventually

from tunesmith.rollout import orders
from tunesmith.rollout.choosing import choose_each

LENGTH = 300
BODY = {"model": "tiny", "prompt": "a", "max_tokens": 2}
INNOCENT = [
    {"temperature": 0},
    {"temperature": 0.9, "seed": 1, "top_p": 0.9},
    {"temperature": 1.2, "seed": 2, "presence_penalty": 1, "logit_bias": {"70": 3}},
]
SERVED = [
    *({"temperature": value} for value in (1e-300, 5e-324, 1e-45, 1e-5, 1e-4, 10)),
    *({"top_p": value} for value in (1e-6, 0.99999999, 1)),
    *({"repetition_penalty": value, "temperature": heat} for value in (0.01, 10) for heat in (0, 1e-4, 10)),
    *({"presence_penalty": value, "frequency_penalty": value, "max_tokens": 40} for value in (-2, 2)),
    *({"min_p": value} for value in (0, 5e-324, 1)),
    *({"top_k": value} for value in (-1, 0, 1, 10**9, 10**300)),
    *({"seed": value} for value in (0, -1, 2**63, 2**64, -(10**30), 10**300)),
    {"logit_bias": {str(token): 100 for token in range(300)}},
    {"logit_bias": {str(token): -100 for token in range(300)}, "temperature": 1e-300},
    {"logit_bias": {"0": -100, "00": 100}},
    {"n": 8, "temperature": 10},
    {"stop": ["\u0000", "a" * 1024, *"bcdefghijklmno"]},
    {"max_tokens": 500},
    {"temperature": 1e-4, "repetition_penalty": 0.01, "top_p": 1e-6, "min_p": 1, "logit_bias": {"1": 100, "2": -100}},
]  # fmt: skip
REFUSED = [
    *({"temperature": value} for value in (-5e-324, -1, 10.1, 1e300)),
    *({"top_p": value} for value in (0, 1e-300, 9e-7, -1, 1.0000001)),
    *({"repetition_penalty": value} for value in (0, 1e-300, 0.0099, -1, 1e300)),
    *({"presence_penalty": value} for value in (-2.1, 1e300)),
    *({"frequency_penalty": value} for value in (2.1, -1e300)),
    *({"min_p": value} for value in (-1e-300, 1.1)),
    *({"top_k": value} for value in (-2, 0.5)),
    *({"seed": value} for value in (0.5, "x")),
    *({"n": value} for value in (0, -1, 33, 10**300)),
    *({"max_tokens": value} for value in (0, -1, 513, 10**300)),
    *({"stop": value} for value in ("", "a" * 1025, ["x"] * 17, [""])),
    *({"logit_bias": {name: 1}} for name in ("-1", "1" * 5000, "\u0663", "400000", "")),
    {"logit_bias": {"1": 101}},
]  # fmt: skip


def complete(server, changes: dict) -> httpx.Response:
    return httpx.post(f"{server.address}/v1/completions", json={**BODY, **changes}, timeout=60)


class Beside:
    """Three streams that are under way while something else is asked."""

    def __init__(self, server, pool: ThreadPoolExecutor, model: str = "tiny") -> None:
        self.begun = threading.Semaphore(0)
        self.futures: list[Future] = [pool.submit(self.read, server, model, changes) for changes in INNOCENT]

    def read(self, server, model: str, changes: dict) -> str:
        body = {**BODY, **changes, "model": model, "max_tokens": LENGTH, "ignore_eos": True, "stream": True}
        text = ""
        with httpx.stream("POST", f"{server.address}/v1/completions", json=body, timeout=120) as stream:
            assert stream.status_code == 200
            for line in stream.iter_lines():
                if line.startswith("data: {"):
                    found = json.loads(line.removeprefix("data: "))
                    assert "error" not in found, found
                    text += found["choices"][0]["text"]
                    self.begun.release()
        return text

    def wait_until_begun(self) -> None:
        for _ in range(len(INNOCENT)):
            self.begun.acquire(timeout=30)

    @property
    def under_way(self) -> int:
        return sum(not future.done() for future in self.futures)

    def texts(self) -> list[str]:
        return [future.result(60) for future in self.futures]


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(24) as made:
        yield made


@pytest.mark.row("W6")
@pytest.mark.parametrize(
    ("asked", "status", "size"), [(SERVED, 200, 12), (REFUSED, 400, len(REFUSED))], ids=["served", "refused"]
)
def test_extreme_settings_leave_the_streams_beside_them_as_they_are(server, pool, evidence, asked, status, size):
    alone = Beside(server, pool).texts()
    groups = [asked[at : at + size] for at in range(0, len(asked), size)]
    met = 0
    for group in groups:
        beside = Beside(server, pool)
        beside.wait_until_begun()
        met += beside.under_way
        answers = list(pool.map(lambda changes: complete(server, changes), group))
        for changes, answer in zip(group, answers, strict=True):
            assert answer.status_code == status, (changes, answer.text)
            assert status == 200 or answer.json()["error"]["code"] in ("E411", "E414")
        assert beside.texts() == alone
    assert met >= len(groups), "streams were under way"
    eventually(lambda: server.pages == 0)
    claim = f"requests with extreme settings beside three streams each, {'served' if status == 200 else 'refused'}"
    evidence("W6", claim=claim, figure=f"{len(asked)}; 0 of {3 * len(groups)} streams changed")


GUILTY = {"seed": 666, "temperature": 1, "max_tokens": 40}


def fault(kind: str):
    """A sampler that fails, or leaves the vocabulary, wherever a row of the guilty request is among the rest."""

    def broken(logits, rows):
        guilty = [row.sampling.seed == 666 for row in rows]
        if kind == "raises" and any(guilty):
            raise RuntimeError("a bug of one row")
        found = choose_each(logits, rows)
        outside = {"beyond": logits.shape[-1], "before": -1}
        return [outside.get(kind, token) if own else token for token, own in zip(found, guilty, strict=True)]

    return broken


@pytest.mark.parametrize("model", ["tiny", "gemma"])
@pytest.mark.parametrize("kind", ["raises", "beyond", "before"])
def test_a_row_that_cannot_be_chosen_ends_its_own_request(server, pool, monkeypatch, model, kind):
    alone = together(server, pool, model, guilty=False)
    monkeypatch.setattr(orders, "choose_each", fault(kind))
    assert together(server, pool, model, guilty=True) == alone
    eventually(lambda: server.pages == 0)


@pytest.mark.parametrize("model", ["tiny", "gemma"])
def test_a_row_that_is_not_finite_ends_its_own_request(server, pool, monkeypatch, model):
    alone = together(server, pool, model, guilty=False)
    plain = orders.advance

    def with_nan(logits, live):
        logits = logits.clone()
        for at, answer in enumerate(live):
            if answer.order.sampling.seed == 666 and len(answer.tokens) == 3:
                logits[at, 5] = float("nan")
        return plain(logits, live)

    monkeypatch.setattr("tunesmith.rollout.scheduler.advance", with_nan)
    if model == "tiny":
        monkeypatch.setattr(server.house.schedulers["tiny"].table, "advance", with_nan)
    assert together(server, pool, model, guilty=True, code="E151") == alone


def together(server, pool, model: str, *, guilty: bool, code: str = "E550") -> list[str]:
    """The texts of three streams, begun in one batch with a request that fails when it is among them."""
    held = threading.Event()
    server.house.worker.call(held.wait)
    beside = Beside(server, pool, model)
    asked = pool.submit(complete, server, {**GUILTY, "model": model}) if guilty else None
    eventually(lambda: len(server.house.worker.inbox) == len(INNOCENT) + guilty)
    held.set()
    texts = beside.texts()
    if asked is not None:
        answer = asked.result(60)
        assert answer.status_code == 500
        error = answer.json()["error"]
        assert error["code"] == code
        assert error["fixes"]
        assert code != "E550" or "other answers go on" in error["message"]
    return texts


def test_a_request_whose_answers_cannot_begin_ends_alone(server, pool, monkeypatch):
    def broken(name, room, sampling):
        if sampling.seed == 666:
            raise MemoryError("no numbers")
        return drawn(name, room, sampling)

    drawn = orders.row_draws
    for model in ("tiny", "gemma"):
        alone = together(server, pool, model, guilty=False)
        with monkeypatch.context() as patch:
            patch.setattr(orders, "row_draws", broken)
            assert together(server, pool, model, guilty=True) == alone


@pytest.mark.parametrize("part", ["take", "chooser"])
def test_a_failure_of_one_answer_ends_its_own_request(server, pool, monkeypatch, part):
    alone = together(server, pool, "tiny", guilty=False)
    plain = {"take": orders.Answer.take, "chooser": orders.Answer.chooser}[part]

    def broken(answer, given):
        if answer.order.sampling.seed == 666 and len(answer.tokens) > 2:
            raise ValueError("a text that is none")
        return plain(answer, given)

    monkeypatch.setattr(orders.Answer, part, broken)
    assert together(server, pool, "tiny", guilty=True) == alone
