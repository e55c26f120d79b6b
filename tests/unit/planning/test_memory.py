from pathlib import Path

import numpy as np
import pytest
from tests.tiny import tiny_model_folder

from tunesmith.data.packing import batch_of
from tunesmith.models.config import FreezeConfig, FullConfig, LoraConfig, ModelConfig
from tunesmith.models.forward import score
from tunesmith.models.headers import TensorInfo
from tunesmith.models.inventory import Inventory, take_inventory, trainable
from tunesmith.models.layer import function
from tunesmith.models.layer.module import WINDOWS
from tunesmith.models.load import load_model
from tunesmith.models.policy import Checkpointing, everywhere
from tunesmith.planning.memory import (
    NOTHING,
    WRITTEN_OUT,
    Load,
    compute_type,
    estimate,
    values_kept,
)
from tunesmith.train.optimizers import AdamW
from tunesmith.types import Example

HIDDEN, INNER, LAYERS, VOCABULARY = 64, 128, 4, 1000


def inventory(dtype="bfloat16", model_type="llama"):
    tensors = {"model.embed_tokens.weight": TensorInfo("BF16", (VOCABULARY, HIDDEN))}
    for layer in range(LAYERS):
        start = f"model.layers.{layer}."
        tensors |= {
            start + "self_attn.q_proj.weight": TensorInfo("BF16", (HIDDEN, HIDDEN)),
            start + "mlp.up_proj.weight": TensorInfo("BF16", (INNER, HIDDEN)),
            start + "input_layernorm.weight": TensorInfo("BF16", (HIDDEN,)),
        }
    return Inventory(
        Path("x"), model_type, dtype, HIDDEN, LAYERS, 4, 2, 16, INNER, VOCABULARY, 512, (), tensors
    )  # fmt: skip


def memory(adapter, tokens=1000, chosen=NOTHING, **changes):
    model = inventory()
    load = Load(**{"tokens": tokens, "longest": 100, "dtype": "bfloat16", **changes})
    return estimate(model, trainable(model, adapter), adapter, load, chosen)


def test_full_tuning_takes_18_bytes_a_parameter():
    total = inventory().total
    full = memory(FullConfig(), device="cuda")
    assert full.weights == 2 * total
    assert full.gradients == 4 * total
    assert memory(FullConfig()).gradients == 4 * total + 8 * HIDDEN * VOCABULARY  # the embedding's last sums
    assert full.optimizer == 12 * total
    assert full.adapters == 0


def test_full_tuning_in_fp32_needs_no_masters():
    total = inventory().total
    full = memory(FullConfig(), dtype="float32", device="cuda")
    assert full.weights + full.gradients + full.optimizer == 16 * total


def test_lora_takes_the_frozen_weights_and_16_bytes_an_adapter_parameter():
    model = inventory()
    count = trainable(model, LoraConfig(rank=4)).total
    assert count == LAYERS * 4 * (2 * HIDDEN + HIDDEN + INNER)
    lora = memory(LoraConfig(rank=4))
    assert lora.weights == 2 * model.total
    assert lora.adapters + lora.gradients + lora.optimizer == 16 * count


def test_the_peak_is_the_sum_of_its_parts():
    parts = memory(LoraConfig()).to_json()
    assert parts.pop("peak") == sum(parts.values())


def test_activations_grow_with_tokens_and_layers_that_backward_reaches():
    assert memory(LoraConfig(), 2000).activations > 1.9 * memory(LoraConfig(), 1000).activations
    assert memory(FreezeConfig(last=1)).activations < memory(FreezeConfig(last=4)).activations


def test_layers_keep_less_the_more_they_form_again():
    policies = ("offloaded", "full", "selective", "off")
    totals = [memory(LoraConfig(), chosen=everywhere(policy)).activations for policy in policies]
    assert totals == sorted(totals)
    assert len(set(totals)) == len(totals)
    assert memory(LoraConfig(), chosen=Checkpointing(full=LAYERS)) == memory(LoraConfig(), chosen=everywhere("full"))


def test_gradients_that_are_used_up_at_once_take_a_layer_or_the_embedding():
    total = inventory().total
    layer, embedding = 6 * total // LAYERS, HIDDEN * VOCABULARY
    long, short = (memory(FullConfig(), tokens, in_backward=True, device="cuda") for tokens in (1000, 10))
    assert long.gradients == layer
    assert layer < short.gradients <= layer + 8 * embedding
    assert memory(FullConfig(), in_backward=True).gradients == layer + 8 * embedding
    assert memory(FullConfig(), in_backward=True, dtype="float32").gradients == total + 8 * embedding


def test_dense_attention_pays_for_its_square():
    assert memory(LoraConfig(), dense=True).activations > memory(LoraConfig()).activations


def test_the_type_is_the_checkpoints_own_unless_asked():
    assert compute_type(inventory("float32"), "auto") == "float32"
    assert compute_type(inventory("float16"), "auto") == "bfloat16"
    assert compute_type(inventory("bfloat16"), "float32") == "float32"


def tensors_of(kept):
    halves = (kept.attention, kept.mlp)
    parts = [part for half in halves for part in (half.low_in, half.low_out, half.before_norm)]
    heads = kept.attended.heads
    parts += [kept.raw, heads.query, heads.key, heads.value, kept.mixed, kept.middle, kept.both]
    return [part for part in parts if part is not None]


@pytest.mark.parametrize("architecture", sorted(WRITTEN_OUT))
@pytest.mark.parametrize("adapter", [FullConfig(), LoraConfig(rank=4)], ids=["full", "lora"])
def test_a_layer_keeps_as_many_numbers_as_planned(architecture, adapter, tmp_path, monkeypatch):
    """Every tensor that a forward pass keeps, and the layer's output, are counted."""
    folder = tiny_model_folder(tmp_path, architecture)
    model = load_model(folder, ModelConfig(path=str(folder), adapter=adapter))
    counted = []
    forward = function.forward_layer

    def counting(x, call):
        out, kept = forward(x, call)
        counted.append(sum(part.numel() for part in (out, *tensors_of(kept))) / len(x))
        return out, kept

    monkeypatch.setattr(function, "forward_layer", counting)
    weights = np.array([0, *[1] * 20], dtype=np.float32)
    score(model, batch_of([Example(np.arange(3, 24, dtype=np.int32), weights, "a.jsonl", 1)]))
    assert counted[0] == values_kept(take_inventory(folder), adapter)


def test_the_planned_layers_are_those_that_are_written_out():
    planned = {name.replace("_", "").lower() for name in WRITTEN_OUT}
    assert planned == {name.removesuffix("DecoderLayer").lower() for name in WINDOWS}


def test_weights_in_bf16_without_masters_take_less():
    total = inventory().total
    full = {
        rounding: memory(FullConfig(), optimizer=AdamW(rounding=rounding), device="cuda", tokens=100_000).optimizer
        for rounding in ("masters", "kahan", "stochastic")
    }
    assert full == {"masters": 12 * total, "kahan": 10 * total, "stochastic": 8 * total}
    few = memory(FullConfig(), optimizer=AdamW(rounding="stochastic"), device="cuda", tokens=1, in_backward=True)
    assert few.optimizer == 8 * total + 12 * HIDDEN * VOCABULARY  # the embedding in fp32 while it is updated
    for dtype in ("float32", "float16"):
        ways = [memory(FullConfig(), optimizer=AdamW(rounding=way), dtype=dtype) for way in ("masters", "stochastic")]
        assert ways[0] == ways[1]
