import pytest

from common.floor import Product, measure, products

CONFIG = {
    "num_hidden_layers": 3,
    "hidden_size": 8,
    "head_dim": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 100,
}
LENGTHS, SCORED, RANK = [50, 20, 30], 40, 2
QUERY, KEY = 16, 8
BODY = 3 * (8 * QUERY + 2 * 8 * KEY + QUERY * 8 + 3 * 8 * 24)
ADAPTER = 3 * RANK * ((8 + QUERY) + 2 * (8 + KEY) + (QUERY + 8) + 3 * (8 + 24))
HEAD = 8 * 100
ATTENTION = 7 * QUERY * 3 * sum(length**2 for length in LENGTHS)


def flops(rank: int | None) -> float:
    return sum(product.flops for product in products(CONFIG, LENGTHS, SCORED, rank))


def test_lora_counts_what_a_frozen_base_needs():
    """4 for each base weight, 6 for each of the adapter, the head at scored tokens only, half of the attention."""
    assert flops(RANK) == pytest.approx(100 * (4 * BODY + 6 * ADAPTER) + SCORED * 4 * HEAD + ATTENTION)


def test_training_all_weights_counts_their_gradients_too():
    assert flops(None) == pytest.approx(100 * 6 * BODY + SCORED * 6 * HEAD + ATTENTION)


def test_a_measured_floor_grows_with_the_work():
    one, four = (measure([Product(64, 64, 64, count)], "float32", threads=1) for count in (1.0, 4000.0))
    assert 0 < one["floor_seconds"] < four["floor_seconds"]
    assert four["floor_flops"] == 4000 * one["floor_flops"] == 4000 * 2 * 64**3
