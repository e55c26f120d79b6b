"""Losses and gradients in fp16, written-out layers and transformers' own, beside those in fp32 and in bf16."""

from dataclasses import replace

import pytest
import torch
from tests.unit.models.test_checkpointing import made
from tests.unit.models.test_forest import PAIRS, batches

from tunesmith.distributed.mesh import Mesh
from tunesmith.models.config import LoraConfig
from tunesmith.models.layer.use import use_of
from tunesmith.objectives import SFT
from tunesmith.train.optimizer import Optimizer
from tunesmith.train.optimizers import AdamW
from tunesmith.train.step import compute_step


def step_of(architecture, adapter, dtype, scale=1.0):
    model = made(architecture, adapter, dtype)
    optimizer = Optimizer({name: each for name, each in model.named_parameters() if each.requires_grad}, AdamW())
    optimizer.scale = scale
    result = compute_step(model, [replace(batches(PAIRS)[0], imitated=None)], (SFT(),), optimizer, Mesh())
    return result.loss, torch.cat([gradient.flatten() for gradient in optimizer.gradients()]), use_of(model)


@pytest.mark.parametrize("adapter", [None, LoraConfig(rank=4)], ids=["full tuning", "lora"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
def test_fp16_is_nearer_to_fp32_than_bf16_is(architecture, adapter):
    exact, wanted, _ = step_of(architecture, adapter, torch.float32)
    off = {}
    for dtype, scale in ((torch.float16, 1024.0), (torch.bfloat16, 1.0)):
        loss, found, use = step_of(architecture, adapter, dtype, scale)
        assert loss == pytest.approx(exact, rel=1e-4)
        assert use.fast == (0 if architecture == "gemma2" else use.layers)
        off[dtype] = float((found - wanted).norm() / wanted.norm())
    assert off[torch.float16] < off[torch.bfloat16] / 2
