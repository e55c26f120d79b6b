"""The planner forms again what costs the least time and makes the run fit."""

from itertools import product

import pytest
from tests.unit.planning.test_memory import LAYERS, inventory

from tunesmith.models.config import FreezeConfig, FullConfig, LoraConfig
from tunesmith.models.inventory import trainable
from tunesmith.models.policy import Checkpointing, everywhere
from tunesmith.planning.memory import Load, activation_sizes
from tunesmith.planning.policies import Costs, choose, costs_of, cut, possible, smallest

TOKENS = 1000
CPU, CUDA = frozenset(["off", "selective", "full"]), frozenset(["off", "selective", "full", "offloaded"])


def sizes_of(adapter, device="cpu"):
    model = inventory()
    return activation_sizes(model, trainable(model, adapter), adapter, Load(TOKENS, 100, "bfloat16", device))


def test_everything_is_kept_where_it_fits():
    sizes = sizes_of(LoraConfig())
    assert choose(sizes, TOKENS, sizes.total(TOKENS), costs_of(inventory(), 100), CPU) == Checkpointing()


@pytest.mark.parametrize("adapter", [LoraConfig(), FullConfig(), FreezeConfig(last=3)], ids=["lora", "full", "freeze"])
@pytest.mark.parametrize("share", [0.95, 0.8, 0.6, 0.5, 0.4, 0.3])
def test_no_cheaper_choice_fits(adapter, share):
    sizes, costs = sizes_of(adapter), costs_of(inventory(), 100)
    least, most = sizes.total(TOKENS, everywhere("full")), sizes.total(TOKENS)
    room = least + share * (most - least)
    found = choose(sizes, TOKENS, room, costs, CPU)
    assert found is not None
    assert sizes.total(TOKENS, found) <= room
    ways = [Checkpointing(full=f, selective=s) for f, s in product(range(sizes.layers + 1), repeat=2)]
    fitting = [way for way in ways if way.layers <= sizes.layers and sizes.total(TOKENS, way) <= room]
    assert costs.of(found) == min(map(costs.of, fitting))


def test_selective_comes_first_then_full():
    """The less memory there is, the more layers form the more again."""
    sizes, costs = sizes_of(LoraConfig()), Costs(selective=1, full=3)
    least, most = sizes.total(TOKENS, everywhere("full")), sizes.total(TOKENS)
    rooms = [least + share / 40 * (most - least) for share in range(41)]
    found = [choose(sizes, TOKENS, room, costs, CPU) for room in reversed(rooms)]
    full = [way.full for way in found if way is not None]
    assert full == sorted(full)
    assert (full[0], full[-1]) == (0, LAYERS)
    assert any(way is not None and way.selective == LAYERS for way in found)


def test_selective_is_left_out_where_layers_have_no_mlp():
    sizes = sizes_of(LoraConfig())
    room = sizes.total(TOKENS) - 1
    found = choose(sizes, TOKENS, room, costs_of(inventory(), 100), frozenset(["off", "full"]))
    assert found is not None
    assert (found.selective, found.full > 0) == (0, True)


def test_offloading_is_the_last_way_out_and_a_gpu_s_alone():
    sizes, costs = sizes_of(LoraConfig(), "cuda"), costs_of(inventory(), 100)
    wide = sizes_of(LoraConfig(), "cuda").full * TOKENS
    deep = Checkpointing(offloaded=LAYERS)
    assert sizes.total(TOKENS, deep) < sizes.total(TOKENS, everywhere("full")) + 2 * wide
    room = sizes.total(TOKENS, everywhere("full"))
    assert choose(sizes, TOKENS, room, costs, CUDA) == Checkpointing(full=LAYERS)
    assert choose(sizes, TOKENS, sizes.total(TOKENS, deep), costs, CUDA) == deep
    assert choose(sizes, TOKENS, room - 1, costs, CPU) is None
    assert smallest(sizes, TOKENS, CPU) == Checkpointing(full=LAYERS)
    assert smallest(sizes, TOKENS, CUDA) == deep


def test_what_is_possible():
    assert possible(inventory(), "cpu") == CPU
    assert possible(inventory(), "cuda") == CUDA


def test_no_more_layers_than_there_are():
    assert cut(everywhere("selective"), 3) == Checkpointing(selective=3)
    assert cut(Checkpointing(1, 5, 5), 3) == Checkpointing(1, 2, 0)
    assert cut(everywhere("off"), 3) == Checkpointing()


def test_the_lowest_layers_form_the_most_again():
    chosen = Checkpointing(offloaded=1, full=1, selective=2)
    assert [chosen.of_layer(number) for number in range(-1, 6)] == [
        "off", "offloaded", "full", "selective", "selective", "off", "off"
    ]  # fmt: skip
    assert Checkpointing.of_json(chosen.to_json()) == chosen
