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
from collections.abc import Sequence

import torch
from torch import Tensor

from lowrise.linalg.norms import largest_entries, nonzero
from lowrise.linalg.precision import full_precision_matmul
from lowrise.linalg.stacks import laid_out

# A line whose RMS (with the scales of the other side) is below this part of the largest entry of X counts as
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
    shape = X.shape
    ((r, c),) = sinkhorn_vectors_each([X.reshape(-1, *shape[-2:])], iters=iters, rows_first=rows_first)
    return r.reshape(shape[:-1]), c.reshape(*shape[:-2], shape[-1])


def sinkhorn_vectors_each(
    Xs: Sequence[Tensor], *, iters: int = 5, rows_first: bool = True
) -> list[tuple[Tensor, Tensor]]:
    """`sinkhorn_vectors` of several stacks (b, m, n): what is done to r, c and S entry by entry is done once
    for all of them, so that each further shape costs its products.
    """
    counts = [len(X) for X in Xs]
    largest = nonzero(largest_entries(Xs))
    squares = [torch.Size([X.shape[0], 1, X.shape[side]]) for side in (1, 2) for X in Xs]
    r_squared, r_parts = laid_out(Xs[0], squares[: len(Xs)])
    c_squared, c_parts = laid_out(Xs[0], squares[len(Xs) :])
    flat, S = laid_out(Xs[0], [X.shape for X in Xs])
    for X, own, entry in zip(Xs, S, largest.split(counts), strict=True):
        torch.div(X, entry, out=own)
    flat.square_()
    rows = (r_squared, r_parts, c_parts, [own.mT for own in S])
    columns = (c_squared, c_parts, r_parts, S)
    first, second = (rows, columns) if rows_first else (columns, rows)
    second[0].fill_(1.0)
    with full_precision_matmul(flat.device):
        for _ in range(iters):
            for whole, parts, others, factors in (first, second):
                # As rows from the left: torch's batched product with a column takes several times as long on
                # a CPU. The mean square of a line, as the other side's scales weigh it.
                for part, other, factor in zip(parts, others, factors, strict=True):
                    length = factor.shape[-2]
                    torch.baddbmm(part, other, factor, beta=0.0, alpha=1.0 / length, out=part)
                torch.threshold_(whole, GUARD**2, math.inf).reciprocal_()
    r_squared.sqrt_()
    for part, entry in zip(r_parts, largest.split(counts), strict=True):
        part.div_(entry)
    # The scale of a line of subnormal numbers may be no number of the format; the largest is.
    r_squared.clamp_(max=torch.finfo(flat.dtype).max)
    c_squared.sqrt_()
    return [(r.squeeze(-2), c.squeeze(-2)) for r, c in zip(r_parts, c_parts, strict=True)]
