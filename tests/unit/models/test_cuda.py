"""Attention and scores on a GPU equal the CPU reference; run with `pytest -m gpu`."""

import numpy as np
import pytest
import torch
from tests.unit.models.architectures import VOCABULARY, build
from tests.unit.models.test_forward import all_scored, sequences

from tunesmith.data.packing import Node, assemble
from tunesmith.models import attention
from tunesmith.models.forward import score

pytestmark = pytest.mark.gpu


def shared_prompt():
    rng = np.random.default_rng(3)
    prompt, first, second = (rng.integers(3, VOCABULARY, length) for length in (9, 6, 13))
    ones = [np.ones(len(tokens), dtype=np.float32) for tokens in (first, second)]
    return assemble([Node(prompt, np.zeros(9, dtype=np.float32)), Node(first, ones[0], 0), Node(second, ones[1], 0)])


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen3", "gemma2"])
@pytest.mark.parametrize("shape", ["flat", "forest"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_scores_equal_the_dense_reference(architecture, shape, dtype):
    batch = assemble([all_scored(row) for row in sequences()]) if shape == "flat" else shared_prompt()
    wanted = score(build(architecture, attention.DENSE), batch).logprobs
    model = build(architecture).to("cuda", dtype)
    scores = score(model, batch.to("cuda"))
    scores.logprobs.sum().backward()
    tolerance = 1e-3 if dtype == torch.float32 else 0.15
    torch.testing.assert_close(scores.logprobs.cpu(), wanted, atol=tolerance, rtol=tolerance)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
