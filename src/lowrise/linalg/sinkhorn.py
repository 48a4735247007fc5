"""Square-root Sinkhorn (SinkGD, arXiv 2502.06742, Algorithm 3): scale rows and columns in turn until both
have RMS 1.

For X (..., m, n), `iters` times:

    a. every row to norm sqrt(n):      X <- sqrt(n) Diag(1 / ||X_i:||) X
    b. every column to norm sqrt(m):   X <- sqrt(m) X Diag(1 / ||X_:j||)

The result has columns of norm sqrt(m) and ||X||_F = sqrt(m n) exactly (where no line is zero), and rows
nearly of norm sqrt(n): for a Gaussian matrix within 1e-4 after five iterations. It is Diag(r) X Diag(c) with
positive r and c, so X o X is scaled as in ordinary Sinkhorn; `sinkhorn_vectors` finds r (m) and c (n) by
matrix-vector products with S = X o X and never writes X in between:

    r_i^2 = n / sum_j S_ij c_j^2,    c_j^2 = m / sum_i S_ij r_i^2

A zero line stays zero; it gets the scale 0. All functions are batched over the leading dimensions, leave X
alone and never wait for the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowrise.linalg.norms import largest_entry, nonzero
from lowrise.linalg.precision import full_precision_matmul

# A line whose norm (with the scales of the other side) is below this part of the largest entry of X counts as
# zero, so that neither 1/0 nor an overflow of r^2 arises in float32.
GUARD = 1e-12


def sinkhorn(X: Tensor, *, iters: int = 5, rows_first: bool = True) -> Tensor:
    """Diag(r) X Diag(c) with the vectors of `sinkhorn_vectors`: X is read for S and once more here."""
    r, c = sinkhorn_vectors(X, iters=iters, rows_first=rows_first)
    return X * r.unsqueeze(-1) * c.unsqueeze(-2)


def sinkhorn_vectors(X: Tensor, *, iters: int = 5, rows_first: bool = True) -> tuple[Tensor, Tensor]:
    """r (..., m) and c (..., n) after `iters` iterations from ones; 4 m n FLOPs an iteration.

    S is formed from X / max|X|, so the result is the same for every scale of X that its format holds.
    """
    if not rows_first:
        c, r = sinkhorn_vectors(X.mT, iters=iters)
        return r, c
    m, n = X.shape[-2:]
    largest = nonzero(largest_entry(X))
    S = (X / largest).square_()  # (..., m, n)
    # As rows from the left: torch's batched product with a column takes several times as long on a CPU.
    c_squared = X.new_ones(*X.shape[:-2], 1, n)
    with full_precision_matmul(X.device):
        for _ in range(iters):
            r_squared = _over(n, c_squared @ S.mT)  # (..., 1, m)
            c_squared = _over(m, r_squared @ S)  # (..., 1, n)
    # The scale of a line of subnormal numbers may be no number of the format; the largest is.
    r = (r_squared.sqrt() / largest).clamp_(max=torch.finfo(X.dtype).max)
    c = c_squared.sqrt()
    return r.squeeze(-2), c.squeeze(-2)


def sinkhorn_reference(X: Tensor, *, iters: int = 5, rows_first: bool = True) -> Tensor:
    """The alternating form, as written in the paper: two passes over X for each normalization."""
    for _ in range(iters):
        for dim in (-1, -2) if rows_first else (-2, -1):
            norm = torch.linalg.vector_norm(X, dim=dim, keepdim=True)
            X = X * torch.where(norm > 0, X.shape[dim] ** 0.5 / norm, 0.0)
    return X


def _over(length: int, squares: Tensor) -> Tensor:
    """length / squares, and 0 for a line that counts as zero; `squares` is used up."""
    return torch.threshold_(squares, GUARD**2, math.inf).reciprocal_().mul_(length)
