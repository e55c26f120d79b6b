"""What PEFT needs of CUDA for more than one factor of BOFT, in plain torch."""

import pytest
import torch
from peft.tuners.boft import layer


class BlockDiagonal:
    """PEFT's extension: from (N, D, H, H) to N matrices with the D blocks on their diagonals, and back."""

    @staticmethod
    def forward(blocks):
        return [torch.stack([torch.block_diag(*each) for each in blocks])]

    @staticmethod
    def backward(slope, blocks):
        count, size = blocks.shape[1:3]
        parts = slope.unflatten(1, (count, size)).unflatten(3, (count, size))
        return [parts.diagonal(dim1=1, dim2=3).movedim(-1, 1)]


@pytest.fixture(autouse=True)
def blocks_without_cuda(monkeypatch):
    monkeypatch.setattr(layer, "_FBD_CUDA", BlockDiagonal)
