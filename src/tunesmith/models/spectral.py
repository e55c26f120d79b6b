"""Low-rank factors that begin with a part of W: its largest singular directions, or its QR decomposition."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tunesmith.errors import ModelError, Where

SEED = 20_240_404  # of randomised decompositions: the same factors in every run and on every rank
EXTRA = 16  # directions beyond the rank that a randomised decomposition looks at

Factors = tuple[Float[Tensor, "R I"], Float[Tensor, "O R"]]


@torch.no_grad()
def principal_factors(weight: Float[Tensor, "O I"], rank: int, scale: float, iterations: int) -> Factors:
    """A = sqrt(S_r / s) V_r^T and B = U_r sqrt(S_r / s), so that s B A is W's best approximation (arXiv:2404.02948).

    With `iterations` from a randomised subspace iteration, whose chance is its own; the global one stays as it is.
    """
    whole = weight.detach().float()
    if iterations:
        u, s, vh = sketched(whole, rank, iterations)
    else:
        u, s, vh = torch.linalg.svd(whole, full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    return (root[:, None] * vh[:rank]).contiguous(), (u[:, :rank] * root).contiguous()


def sketched(whole: Float[Tensor, "O I"], rank: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular triples (arXiv:0909.4061 algorithms 4.4 and 5.1)."""
    width = min(rank + EXTRA, *whole.shape)
    generator = torch.Generator().manual_seed(SEED)
    sketch = torch.randn(whole.shape[1], width, generator=generator).to(whole.device)
    basis = torch.linalg.qr(whole @ sketch).Q
    for _ in range(iterations):
        basis = torch.linalg.qr(whole @ torch.linalg.qr(whole.T @ basis).Q).Q
    u, s, vh = torch.linalg.svd(basis.T @ whole, full_matrices=False)
    return basis @ u, s, vh


@torch.no_grad()
def triangular_factors(weight: Float[Tensor, "O I"], rank: int) -> Factors:
    """A = the first rows of R and B = the first columns of Q, where W = Q R (arXiv:2406.01775)."""
    q, r = torch.linalg.qr(weight.detach().float())
    return r[:rank].contiguous(), q[:, :rank].contiguous()


def check_rank(rank: int, shape: tuple[int, ...]) -> None:
    if rank > min(shape):
        raise ModelError(
            "E310",
            f"rank {rank} is above the dimension of a matrix of {shape[0]} x {shape[1]}",
            where=Where(field="model.adapter.rank"),
            fixes=[f"model.adapter.rank={min(shape)}"],
        )
