"""All layers in one call of the kernels: what their parts give, for all sizes, rows, threads and callers."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.unit.models.test_decode_kernels import compiled
from tests.unit.rollout.test_engine import PROMPTS, WRITTEN_OUT, decode, fast, with_adapter
from torch import nn

from tunesmith.models.native.decode import PLACES
from tunesmith.models.native.step import Layers
from tunesmith.rollout.config import Held
from tunesmith.rollout.engine.engine import Engine

ROOT = Path(__file__).parents[3]
ODD = {  # nothing fills a block of 32 or 64, in no dimension
    "hidden_size": 100,
    "intermediate_size": 37,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "head_dim": 48,
}
WIDE = {
    "hidden_size": 160,
    "intermediate_size": 200,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 80,
}


@pytest.fixture
def own_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def both(model: nn.Module, held: Held) -> tuple[Engine, Engine]:
    """The model in one call, and part by part."""
    whole, parts = Engine(model, held), Engine(model, held)
    assert whole.stack is not None
    parts.stack = None
    return whole, parts


@compiled
@pytest.mark.parametrize("held", ["packed", "int8"])
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("architecture", WRITTEN_OUT)
def test_one_call_gives_what_the_parts_give(architecture: str, rank: int, held: Held, own_threads: None) -> None:
    """To the bit, but for low-rank products, which torch adds up in another order; with any number of threads."""
    model = fast(architecture)
    whole, parts = both((with_adapter(model, rank) if rank else model).bfloat16(), held)
    made, wanted = decode(parts, PROMPTS, 12)  # beyond a page, and beyond windows
    found = []
    for count in (1, 5):  # of threads: more than there are rows, and than most machines of tests have
        torch.set_num_threads(count)
        found.append(decode(whole, PROMPTS, 12))
    assert torch.equal(found[0][1], found[1][1])
    if rank:
        assert (found[0][1] - wanted).abs().max() < 0.03 * wanted.abs().max()
    else:
        assert torch.equal(found[0][1], wanted)
        assert found[0][0] == made


@compiled
@pytest.mark.parametrize("held", ["packed", "int8"])
@pytest.mark.parametrize("rank", [0, 12, 40])
@pytest.mark.parametrize("sizes", [ODD, WIDE], ids=["odd", "wide"])
def test_sizes_that_fill_no_block_are_filled_up(sizes: dict[str, int], rank: int, held: Held) -> None:
    model = fast("llama", **sizes)
    whole, parts = both((with_adapter(model, rank) if rank else model).bfloat16(), held)
    _, logits = decode(whole, PROMPTS, 3)
    _, wanted = decode(parts, PROMPTS, 3)
    if rank:
        assert (logits - wanted).abs().max() < 0.03 * wanted.abs().max()
    else:
        assert torch.equal(logits, wanted)


@compiled
@pytest.mark.parametrize("held", ["packed", "int8"])
def test_every_low_rank_product_is_in_it(held: Held) -> None:
    """One projection has an adapter at a time: what it adds to the logits is what it adds part by part."""
    base = decode(both(fast("llama").bfloat16(), held)[0], PROMPTS, 1)[1].float()
    sizes = {"q": 30.0, "v": 2.0, "o": 2.0, "gate": 2.0, "up": 2.0, "down": 2.0}  # attention of random weights is flat
    for name, size in ((f"{name}_proj", size) for name, size in sizes.items()):
        adapted = with_adapter(fast("llama"))
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                nn.init.normal_(parameter, std=size if name in key else 0.0)
        whole, parts = both(adapted.bfloat16(), held)
        found, wanted = (decode(engine, PROMPTS, 1)[1].float() - base for engine in (whole, parts))
        assert wanted.norm() > 0.05 * base.norm(), name
        assert (found - wanted).norm() < 0.1 * wanted.norm(), name


@compiled
@pytest.mark.parametrize("held", ["packed", "int8"])
@pytest.mark.parametrize("rows", [1, 8, 9, 64, 65, 130])
def test_any_number_of_rows_gives_what_each_gives_alone(rows: int, held: Held) -> None:
    engine = Engine(fast("llama").bfloat16(), held)
    prompt, tokens = [7, 8], torch.arange(rows) % 90 + 3
    together = engine.step(engine.read([prompt] * rows)[0], tokens)
    for row in {0, rows // 2, rows - 1}:
        alone = engine.step(engine.read([prompt] * rows)[0][row : row + 1], tokens[row : row + 1])
        assert torch.equal(alone[0], together[row])


@compiled
@pytest.mark.parametrize("held", ["packed", "int8"])
def test_a_row_that_goes_on_by_many_tokens_is_one_that_goes_on_by_each(held: Held) -> None:
    engine = Engine(fast("mistral").bfloat16(), held)
    tokens = [3 + at % 90 for at in range(2 * PLACES + 30)]
    (one, other), _ = engine.read([[5, 6]] * 2)
    logits = engine.go_on(one, tokens)
    for token in tokens:
        last = engine.step([other], torch.tensor([token]))
    assert torch.equal(logits, last[0])


@compiled
def test_pages_that_move_when_they_grow_are_found_by_the_next_step() -> None:
    whole, parts = both(fast("llama").bfloat16(), "packed")
    prompts = [[row % 90, 5] * 30 for row in range(60)]  # 60 tokens of a page of 64: all rows take another one at once
    found, wanted = decode(whole, prompts, 6), decode(parts, prompts, 6)
    assert whole.pages.used == 120
    assert found[0] == wanted[0]
    assert torch.equal(found[1], wanted[1])


@compiled
def test_two_callers_at_once_do_not_disturb_each_other() -> None:
    engines = [Engine(fast(name).bfloat16(), held) for name, held in (("llama", "packed"), ("qwen3", "int8"))]
    wanted = [decode(engine, PROMPTS, 30) for engine in engines]
    found: list[list] = [[], []]

    def call(at: int) -> None:
        with torch.no_grad():
            found[at] = [decode(engines[at], PROMPTS, 30) for _ in range(3)]

    callers = [threading.Thread(target=call, args=(at,)) for at in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for own, right in zip(found, wanted, strict=True):
        assert len(own) == 3
        assert all(made == right[0] and torch.equal(logits, right[1]) for made, logits in own)


@compiled
def test_fewer_threads_than_were_asked_for_do_the_work() -> None:
    script = (
        "import torch; torch.set_num_threads(4)\n"
        "from tests.unit.rollout.test_engine import PROMPTS, decode, fast\n"
        "from tunesmith.rollout.engine.engine import Engine\n"
        "print(decode(Engine(fast('llama').bfloat16()), PROMPTS, 5)[0])"
    )
    told = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=120,
        env={**os.environ, "OMP_THREAD_LIMIT": "1"},
    )
    assert told.stdout.strip() == str(decode(Engine(fast("llama").bfloat16()), PROMPTS, 5)[0])


def test_layers_that_are_not_held_whole_are_multiplied_part_by_part() -> None:
    assert Engine(fast("llama")).stack is None  # fp32
    assert Engine(fast("llama").bfloat16(), "shared").stack is None


@compiled
def test_matrices_and_caches_of_other_sizes_are_refused() -> None:
    engine = Engine(fast("llama").bfloat16())
    stack = engine.stack
    assert stack is not None
    wider = Engine(fast("llama", **WIDE).bfloat16()).stack
    assert wider is not None
    with pytest.raises(AssertionError):
        Layers(wider.layers, stack.sizes)
    (row,), _ = engine.read([[5, 6]])
    view = engine.pages.view([row])
    states, rotation = engine.begin(torch.tensor([7]), view.lengths - 1)
    caches = [*engine.pages.layers[:-1], torch.zeros(2, 1, 2, PLACES, 16, dtype=torch.bfloat16)]
    with pytest.raises(AssertionError):
        stack.step(states, rotation.cos, rotation.sin, caches, view.pages, view.lengths, view.places)
