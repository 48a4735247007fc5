"""Orthonormal bases of the subspace in which a matrix has most of its energy; leading dimensions are batches.

| function | basis P (m x r) of G (m x n) | captured energy ||P^T G||_F^2 |
|---|---|---|
| `leading_left` | the r leading left singular vectors | the optimum, to rounding: 1e-6 of it in float32 |
| `range_finder` | from random test vectors and power steps | close to it where singular values fall fast |
| `followed` | one block power step from a basis before | see there: 99.95% of the optimum on gradients |
| `uniform_basis` | uniformly random, whatever G is | r / m on average |

`leading_left` diagonalizes the smaller Gram matrix: 2 to 5 times cheaper on a CPU than the thin SVD of G.
Squaring loses the directions of singular values below 3e-4 sigma_1 (float32), which hold 1e-7 of the energy;
whatever stands in their place is orthonormal too.

All return max|P^T P - I| < 2e-6 in float32. They need true float32 products: call them within
`full_precision_matmul`. The signs of columns are arbitrary: see `align_signs`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowrise.linalg.norms import largest_entry
from lowrise.linalg.orthonormal import qf
from lowrise.linalg.solvers import eigh


def leading_left(G: Tensor, rank: int) -> Tensor:
    """The `rank` leading left singular vectors (..., m, rank) of finite G (..., m, n), rank <= min(m, n).

    Waits for the device (eigensolver).
    """
    m, n = G.shape[-2:]
    G = _scaled(G)
    if m <= n:
        return _leading_eigenvectors(G @ G.mT, rank)
    V = _leading_eigenvectors(G.mT @ G, rank)
    return torch.linalg.qr(G @ V).Q  # G V = U diag(sigma): orthogonal columns, the largest first


def range_finder(G: Tensor, rank: int, test: Tensor, *, power: int = 2) -> Tensor:
    """A basis (..., m, rank) by Halko, Martinsson and Tropp (SIAM Review 53, 2011, Algorithm 4.4).

    `test` (..., n, rank + p) are random test vectors; p is the oversampling (16 is plenty). Of their m x
    (rank + p) range after `power` steps of subspace iteration, the `rank` leading directions are kept.
    """
    G = _scaled(G)
    Q = torch.linalg.qr(G @ test).Q
    for _ in range(power):
        Q = torch.linalg.qr(G @ torch.linalg.qr(G.mT @ Q).Q).Q
    B = Q.mT @ G
    return Q @ _leading_eigenvectors(B @ B.mT, rank)


def followed(G: Tensor, previous: Tensor, *, power: int = 1) -> Tensor:
    """A basis (..., m, r) from the one before: `power` times qr(G (G^T P)).

    Block power iteration with a start that knows most of the answer. Direction i of G is found as well as
    (sigma_{r+1} / sigma_i)^2 lets it, better at every renewal. Measured on gradients of a language model with
    other batches and weights at each renewal, rank d/4: at least 99.95% of the energy of `leading_left`, from
    the first renewal on (tests/invariants/test_subspace.py). Columns keep their places, which moments of the
    old basis like. A direction in which `previous` has nothing of G stays arbitrary. Never waits for the
    device but for what its QR waits.
    """
    P, G = previous, _scaled(G)
    for _ in range(power):
        P = torch.linalg.qr(G @ (G.mT @ P)).Q
    return P


def uniform_basis(normal: Tensor) -> Tensor:
    """A uniformly (Haar) distributed basis (..., m, r) from normal numbers of that shape, r <= m."""
    return qf(normal)


def align_signs(P: Tensor, previous: Tensor) -> Tensor:
    """P (..., m, r) with the signs of columns turned so that none points against the same one of `previous`.

    Moments that are kept while the basis changes go on with the right sign, and runs no longer depend on
    which sign a solver happens to return (on the same machine, float32 and float64 differ in that).
    """
    against = (P * previous).sum(dim=-2, keepdim=True) < 0
    return torch.where(against, -P, P)


def _leading_eigenvectors(S: Tensor, rank: int) -> Tensor:
    """Of symmetric S, those of the largest eigenvalues, the largest first."""
    return eigh(S)[1][..., -rank:].flip(-1)


def _scaled(G: Tensor) -> Tensor:
    """G / max|G|, per matrix: the Gram matrix of tiny gradients would underflow. Zero stays zero."""
    largest = largest_entry(G)
    return G / torch.where(largest > 0, largest, 1.0)
