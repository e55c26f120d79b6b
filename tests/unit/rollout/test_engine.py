"""The engine against transformers: the same logits for every architecture, however rows come, share pages and go."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.unit.models.architectures import ARCHITECTURES, build
from tests.unit.rollout.test_generator import load
from tests.unit.serve.running import resident
from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.models.adapters import attach
from tunesmith.models.config import LoraConfig
from tunesmith.models.layer.module import put_fast_layers
from tunesmith.models.native.decode import PLACES
from tunesmith.rollout.choosing import Sampling
from tunesmith.rollout.config import Held
from tunesmith.rollout.continuous import Asked, answers
from tunesmith.rollout.engine.engine import Engine, check_held, in_passes, serves
from tunesmith.rollout.engine.matrices import Packs
from tunesmith.rollout.engine.pages import Pages, Row, View, attend_plainly
from tunesmith.rollout.orders import Answer, Order, Speaker
from tunesmith.rollout.scheduler import EngineScheduler

WRITTEN_OUT = ["llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2"]
PROMPTS = [[5, 9, 70], [17], list(range(20, 90))]


def fast(architecture: str, **sizes: int) -> PreTrainedModel:
    return put_fast_layers(build(architecture, **sizes)).eval()


def plain_logits(architecture: str, tokens: list[int], adapted: nn.Module | None = None) -> torch.Tensor:
    """Of the last token, by transformers' own layers and attention."""
    model = build(architecture, "eager") if adapted is None else adapted
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0, -1]


def decode(engine: Engine, prompts: list[list[int]], count: int) -> tuple[list[list[int]], torch.Tensor]:
    """Greedy answers of `count` tokens, and the logits behind them."""
    rows, logits = engine.read(prompts)
    made: list[list[int]] = [[] for _ in prompts]
    for _ in range(count):
        picked = logits.float().argmax(-1)
        for own, token in zip(made, picked.tolist(), strict=True):
            own.append(token)
        logits = engine.step(rows, picked)
    return made, logits


def with_adapter(model: nn.Module, rank: int = 4) -> nn.Module:
    torch.manual_seed(1)
    adapted = attach(model, LoraConfig(rank=rank)).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return adapted


@pytest.mark.parametrize("architecture", WRITTEN_OUT)
def test_greedy_tokens_and_logits_equal_those_of_transformers(architecture: str) -> None:
    model = fast(architecture)
    assert serves(model)
    made, logits = decode(Engine(model), PROMPTS, 80)  # beyond a page, and beyond windows
    for prompt, own, last in zip(PROMPTS, made, logits, strict=True):
        for count in (0, 1, 30, 79):
            assert plain_logits(architecture, prompt + own[:count]).argmax() == own[count]
        torch.testing.assert_close(last, plain_logits(architecture, prompt + own), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("held", "tolerance"), [("shared", 0.05), ("packed", 0.05), ("int8", 0.15)])
@pytest.mark.parametrize("architecture", WRITTEN_OUT)
def test_bf16_logits_are_those_of_fp32_up_to_rounding(architecture: str, held: Held, tolerance: float) -> None:
    engine = Engine(fast(architecture).bfloat16(), held)
    rows, _ = engine.read(PROMPTS)
    tokens = torch.arange(40, 60)
    for token in tokens:
        logits = engine.step(rows, token.expand(len(rows)))
    for prompt, last in zip(PROMPTS, logits, strict=True):
        wanted = plain_logits(architecture, prompt + tokens.tolist())
        assert (last.float() - wanted).abs().max() < tolerance * wanted.abs().max()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_an_adapter_is_part_of_what_is_decoded(dtype: torch.dtype, tolerance: float) -> None:
    adapted = with_adapter(fast("qwen2"))
    other = attach(build("qwen2", "eager"), LoraConfig(rank=4)).eval()
    other.load_state_dict(adapted.state_dict())
    adapted = adapted.to(dtype)
    assert serves(adapted)
    made, logits = decode(Engine(adapted), PROMPTS, 6)
    for prompt, own, last in zip(PROMPTS, made, logits, strict=True):
        wanted = plain_logits("qwen2", prompt + own, other)
        assert (last.float() - wanted).abs().max() < tolerance * wanted.abs().max()
        assert (last.float() - plain_logits("qwen2", prompt + own)).abs().max() > 0.2 * wanted.abs().max()


@pytest.mark.parametrize("held", ["packed", "int8"])
@pytest.mark.parametrize("adapted", [False, True])
def test_rows_of_bf16_do_not_depend_on_their_neighbours(held: Held, adapted: bool) -> None:
    model = with_adapter(fast("llama")) if adapted else fast("llama")
    engine = Engine(model.bfloat16(), held)
    rows, _ = engine.read([[7, 8]] * 5)
    tokens = torch.tensor([3, 4, 5, 6, 7])
    together = engine.step(rows, tokens)
    alone = engine.read([[7, 8]] * 5)[0]
    for row, token, own in zip(alone, tokens, together, strict=True):
        if engine.pages.native:
            assert torch.equal(engine.step([row], token[None])[0], own)
        else:
            torch.testing.assert_close(engine.step([row], token[None])[0], own, rtol=0.05, atol=0.05)


def test_what_is_not_written_out_is_not_served() -> None:
    for architecture in set(ARCHITECTURES) - set(WRITTEN_OUT):
        assert not serves(fast(architecture))
    assert not serves(build("llama"))


def test_forked_rows_share_full_pages_and_give_all_back() -> None:
    engine = Engine(fast("llama"))
    (row,), logits = engine.read([list(range(3, 93)) + list(range(3, 50))])
    assert row.length == 137
    forks = [engine.fork(row) for _ in range(3)]
    assert engine.pages.used == 2 + 4  # two full pages shared, one of its own for each
    assert [fork.pages[:2] for fork in forks] == [row.pages[:2]] * 3
    engine.release(row)
    answers_of = [engine.step([fork], torch.tensor([token])) for fork, token in zip(forks, (3, 4, 3), strict=True)]
    assert torch.equal(answers_of[0], answers_of[2])
    assert not torch.equal(answers_of[0], answers_of[1])
    assert logits.isfinite().all()
    for fork in forks:
        engine.release(fork)
    assert engine.pages.used == 0


def test_pages_grow_and_are_used_again() -> None:
    pages = Pages(1, 1, 16, torch.empty(0))
    rows = [Row() for _ in range(3)]
    for row in rows:
        assert len(pages.extend(row, 40 * PLACES)) == 40 * PLACES
    assert pages.used == 120
    assert len(set(rows[0].pages + rows[1].pages + rows[2].pages)) == 120
    held = len(pages.users)
    pages.release(rows[1])
    pages.extend(Row(), 40 * PLACES)
    assert len(pages.users) == held


def test_plain_attention_sees_the_window_alone() -> None:
    torch.manual_seed(0)
    cache = torch.randn(2, 3, 1, PLACES, 16)
    view = View(torch.tensor([[2, 0]], dtype=torch.int32), torch.tensor([70]), torch.tensor([0]))
    out, query = torch.empty(1, 16), torch.randn(1, 1, 16)
    attend_plainly(query, cache, view, 10, 0.25, out)
    keys = torch.cat([cache[0, 2, 0], cache[0, 0, 0]])[60:70]
    values = torch.cat([cache[1, 2, 0], cache[1, 0, 0]])[60:70]
    torch.testing.assert_close(out, (query[0] @ keys.T * 0.25).softmax(-1) @ values)


def test_prompts_are_read_in_passes_of_bounded_size() -> None:
    assert list(in_passes([4000, 90, 10, 9000, 1])) == [[0, 1], [2], [3], [4]]


class Counting:
    """An engine that only counts: token n + 1 follows token n, rows hold their prompt."""

    def __init__(self) -> None:
        self.reads: list[int] = []
        self.sizes: list[int] = []
        self.rows = 0

    def read(self, prompts: list[list[int]]) -> tuple[list[Row], torch.Tensor]:
        self.reads.append(len(prompts))
        self.rows += len(prompts)
        return [Row() for _ in prompts], torch.tensor([[prompt[-1]] for prompt in prompts]).float()

    def fork(self, row: Row) -> Row:
        self.rows += 1
        return Row()

    def release(self, row: Row) -> None:
        self.rows -= 1

    def step(self, rows: list[Row], tokens: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(rows))
        return tokens[:, None].float()


def test_prompts_of_all_lengths_leave_no_kernels_behind(tmp_path: Path) -> None:
    engine = Engine(fast("llama").bfloat16())
    if not engine.pages.native:
        pytest.skip("the products of this processor are torch's")
    read = lambda count: engine.release(engine.read([[5] * count])[0][0])  # noqa: E731
    read(300)
    before = resident()
    for count in range(1, 300):
        read(count)
    assert resident() - before < 4 << 20  # half a MiB for every number of rows and shape would be more than 100


def test_engines_of_one_base_share_what_is_packed() -> None:
    adapted = with_adapter(fast("qwen2").bfloat16())
    packs = Packs("packed")
    adapted_engine = Engine(adapted, packs=packs)
    count = len(packs.made)
    adapted.base_model.disable_adapter_layers()
    alone = Engine(adapted, packs=packs)
    assert len(packs.made) == count
    adapted.base_model.enable_adapter_layers()
    for engine, other in ((adapted_engine, Engine(adapted)), (alone, Engine(fast("qwen2").bfloat16()))):
        made, logits = decode(engine, PROMPTS, 5)
        again, wanted = decode(other, PROMPTS, 5)
        assert made == again
        assert torch.equal(logits, wanted)


def test_both_feeders_make_the_same_answers_to_the_bit(tmp_path: Path) -> None:
    model, tokenizer = load(tmp_path, "llama")
    seen: list[list[torch.Tensor]] = [[], []]
    by_list: dict[int, list[int]] = {at: [] for at in range(9)}

    def greedy(logits: torch.Tensor, live: list) -> list[int]:
        seen[0].append(logits.clone())
        return logits.float().argmax(-1).tolist()

    asked = [Asked(at, at % 3, 3 + at) for at in range(9)]  # they leave one after the other
    for name, token, _ in answers(Engine(model), PROMPTS, asked, greedy, frozenset(), 9):
        by_list[name].append(token)
    server = EngineScheduler(Engine(model), Speaker(tokenizer, frozenset(), 512), 9, 1000)
    advance, made = server.table.advance, dict[Order, list[int]]()

    def noting(logits: torch.Tensor, live: Sequence[Answer]) -> Sequence[int]:
        seen[1].append(logits.clone())
        made.update((answer.order, answer.tokens) for answer in live)
        return advance(logits, live)

    server.table.advance = noting
    orders = [Order("m", PROMPTS[at % 3], Sampling(3 + at), lambda piece: None) for at in range(9)]
    server.waiting.extend(orders)
    with torch.no_grad():
        while server.turn():
            pass
    assert [made[order] for order in orders] == list(by_list.values())
    assert len(seen[0]) == len(seen[1])
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))


def test_free_places_are_filled_at_once_and_prompts_are_read_once() -> None:
    engine = Counting()
    asked = [Asked(name, name // 3, room) for name, room in enumerate([2, 5, 2, 2, 9, 2, 3, 3, 3])]
    found: dict[int, list[int]] = {}
    pick = lambda logits, live: [int(each) + 1 for each in logits[:, 0]]  # noqa: E731
    for name, token, ends in answers(engine, [[10], [20], [30]], asked, pick, frozenset([24]), 4):  # pyright: ignore[reportArgumentType]
        found.setdefault(name, []).append(token)
        assert ends == (token == 24 or len(found[name]) == asked[name].room)
    assert found[1] == [11, 12, 13, 14, 15]
    assert found[4] == [21, 22, 23, 24]  # stopped
    assert sum(engine.reads) == 3
    assert engine.rows == 0
    assert max(engine.sizes) == 4
    assert engine.sizes == sorted(engine.sizes, reverse=True)  # full to the last request
    assert engine.sizes.count(4) >= 3


def test_all_pages_are_given_back_when_nobody_listens_any_more(tmp_path: Path) -> None:
    engine = Engine(fast("llama"))
    asked = [Asked(name, name % 2, 30) for name in range(6)]
    made = answers(engine, [[3, 4], [5]], asked, lambda logits, live: [7] * len(logits), frozenset(), 3)
    for _ in range(8):
        next(made)
    assert engine.pages.used
    made.close()
    assert engine.pages.used == 0


@pytest.mark.parametrize("architecture", WRITTEN_OUT)
def test_a_row_goes_on_with_many_tokens_as_if_they_had_been_read_at_once(architecture: str) -> None:
    engine = Engine(fast(architecture))
    tokens = [3 + at % 90 for at in range(2 * PLACES + 300)]
    (row,), _ = engine.read([tokens[:70]])
    logits = engine.go_on(row, tokens[70:])  # in more than one piece, over pages and windows
    torch.testing.assert_close(logits, engine.read([tokens])[1][0], rtol=1e-4, atol=1e-4)
    engine.pages.cut(row, 75)
    assert (row.length, len(row.pages)) == (75, 2)
    other = [9, 8, 7]
    logits = engine.go_on(row, other)
    torch.testing.assert_close(logits, engine.read([tokens[:75] + other])[1][0], rtol=1e-4, atol=1e-4)


def test_cutting_gives_pages_back_and_leaves_those_of_others_alone() -> None:
    engine = Engine(fast("llama"))
    (row,), _ = engine.read([list(range(3, 93)) + list(range(3, 50))])
    fork = engine.fork(row)
    engine.pages.cut(fork, PLACES)
    assert (engine.pages.used, fork.pages) == (3, row.pages[:1])
    engine.release(row)
    assert engine.pages.used == 1
    engine.pages.cut(fork, 0)
    assert (engine.pages.used, fork.length) == (0, 0)


@pytest.mark.parametrize(("architecture", "dtype"), [("gemma2", torch.bfloat16), ("llama", torch.float32)])
def test_eight_bits_are_refused_where_nothing_multiplies_them(architecture: str, dtype: torch.dtype) -> None:
    model = fast(architecture).to(dtype)
    check_held(model, "packed")
    with pytest.raises(ModelError, match="E428") as caught:
        check_held(model, "int8")
    assert ("transformers" if architecture == "gemma2" else "float32") in str(caught.value)
    assert any("packed" in fix.label for fix in caught.value.diagnostic.fixes)
