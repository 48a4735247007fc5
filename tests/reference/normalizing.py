"""The normalizations of SinkGD and SWAN as the papers write them, product by product; the vectorized forms
are tested against these.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sinkhorn(X: Tensor, *, iters: int = 5, rows_first: bool = True) -> Tensor:
    """The alternating form (SinkGD, Algorithm 3): two passes over X for each normalization."""
    for _ in range(iters):
        for dim in (-1, -2) if rows_first else (-2, -1):
            norm = torch.linalg.vector_norm(X, dim=dim, keepdim=True)
            X = X * torch.where(norm > 0, X.shape[dim] ** 0.5 / norm, 0.0)
    return X


def whiten(N: Tensor, *, steps: int = 10, beta: float = 0.8) -> Tensor:
    """SWAN's coupled iteration: Y_0 = N N^T / trace, Z_0 = I; Y <- beta Y (3I - Z Y), Z <- beta (3I - Z Y) Z;
    O = Z N / sqrt(trace). Of a tall N that of its transpose, transposed back; of zero, zero.
    """
    if N.shape[-2] > N.shape[-1]:
        return whiten(N.mT, steps=steps, beta=beta).mT
    identity = torch.eye(N.shape[-2], dtype=N.dtype)
    S = N @ N.mT
    trace = S.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp_min(torch.finfo(N.dtype).tiny)
    Y, Z = S / trace, identity
    for _ in range(steps):
        T = 3.0 * identity - Z @ Y
        Y, Z = beta * (Y @ T), beta * (T @ Z)
    return (Z @ N) / trace.sqrt()
