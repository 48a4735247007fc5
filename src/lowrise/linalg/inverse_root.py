"""R with R R^T = S^-1 for a symmetric positive semidefinite S, such as a Gram matrix: the symmetric root, or
a triangular one.

Inputs are (..., r, r), batched over the leading dimensions; results have shape and dtype of the input.
Whoever uses R as f(X R) R^T, with f(X Q) = f(X) Q for orthogonal Q (as msign and the odd polynomials), gets
the same from every such R: two of them differ by an orthogonal matrix on the right.

A zero matrix gives R = 0, and so do directions whose eigenvalue is rounding beside the largest: nothing is
known of them, and 1/0 would be the largest step of all. So does a matrix that is not finite.

| root | R | cost in r^3 | waits for the device |
|---|---|---|---|
| `cholesky_root` | L^-T, S = L L^T | 1.3 | never |
| `eigen_root` | V w^(-1/2) V^T | about 9 | yes (eigensolver) |
| `iterated_root` | symmetric, by matrix products | 8 a step | never |
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lowrise.linalg.polar import POLAR_EXPRESS, Triple
from lowrise.linalg.solvers import eigh

# Seven steps of LoRA-Muon's fast inverse root (arXiv 2606.12921, Algorithm 4 and Table 2, as three
# re-implementations have them), what they add to the normalized matrix, and what they shrink it by.
SEVEN_STEPS: tuple[Triple, ...] = (
    (7.424865680309214, -18.39581635618996, 12.896720413604342),
    (3.4877256051546017, -2.3300436563986993, 0.4404692168431095),
    (2.7766085124882527, -2.070643152532662, 0.46302261050004967),
    (1.9913142104341506, -1.373936700681269, 0.3875934979568538),
    (1.8754637749479246, -1.2505152090010534, 0.37505152463617264),
    (1.874999066623701, -1.2499981332141676, 0.37499906659046633),
    (1.875, -1.25, 0.375),
)
PUBLISHED_SHIFT = 1e-5
PUBLISHED_SHRINK = 1.001

# Ours: Polar Express (its growth is 3.6e3, so eigenvalues above 1e-7 of the norm arrive) and four of its
# fixed points, each of which cubes the error. Right to rounding for conditions of up to 1e8 in float64.
TWELVE_STEPS: tuple[Triple, ...] = (*POLAR_EXPRESS, *4 * ((1.875, -1.25, 0.375),))

# Rows of the triangles that are left to LAPACK on a CPU; 16 and 64 take longer.
LAPACK_ROWS = 32
LINE = 16  # numbers of float32 in a cache line

# In float64 the reference's floor of eigenvalues, relative to the largest; never below what rounding leaves.
EIGEN_FLOOR = 1e-14


def cholesky_root(S: Tensor) -> Tensor:
    """R = L^-T, upper triangular.

    Where the sine of a column to the span of those before it is lost in rounding (sin^2 <= r eps) no such
    factor means anything. There S is scaled to a unit diagonal, which a triangular root bears exactly, L is
    that of S + d I, d = (r eps)^(2/3), and R = S (S + d I)^-1 L^-T: its singular values w / (w + d)^(3/2) are
    w^(-1/2) for an eigenvalue w well above d, at most 1 where w is rounding, and 0 for w = 0. Chosen per
    matrix and on the device; a CPU leaves it out where nothing needs it.
    """
    r = S.shape[-1]
    noise = r * torch.finfo(S.dtype).eps
    by_halves = S.device.type == "cpu" and r > LAPACK_ROWS
    stack = S.reshape(-1, r, r)
    R, found = _triangular_root(_padded(stack) if by_halves else stack, LAPACK_ROWS if by_halves else r)
    R, found = R[:, :r, :r].view(S.shape), found.view(S.shape[:-2])
    pivots = R.diagonal(dim1=-2, dim2=-1).square().reciprocal()
    squares = S.diagonal(dim1=-2, dim2=-1)
    sound = found & ((pivots > noise * squares) & pivots.isfinite()).all(-1)
    if S.device.type == "cpu" and bool(sound.all()):
        return R
    return torch.where(sound[..., None, None], R, _damped_root(S, noise ** (2 / 3)))


def _padded(S: Tensor) -> Tensor:
    """S (b, r, r) with the identity below, so that rows are whole cache lines: on others the order of a
    product's sums depends on where in a batch the matrix lies."""
    r = S.shape[-1]
    more = -r % LINE
    if not more:
        return S
    wide = S.new_zeros(len(S), r + more, r + more)
    wide[:, :r, :r] = S
    wide.diagonal(dim1=-2, dim2=-1)[:, r:] = 1.0
    return wide


def _triangular_root(S: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """R of S (b, r, r), and whether there is one, (b,): by LAPACK up to so many rows, else by halves,

        R_1 = S_11^(-1/2), T = R_1^T S_12, R_2 = (S_22 - T^T T)^(-1/2),   R = [[R_1, -R_1 T R_2], [0, R_2]]

    which is all products: three times as fast at r = 128, where LAPACK's unblocked part is most of it.
    ||R^T S R - I||_F is at most twice as large, measured at conditions of S up to 1e6 in float32 and 1e12 in
    float64.
    """
    r = S.shape[-1]
    if r <= rows:
        L, failed = torch.linalg.cholesky_ex(S)
        identity = torch.eye(r, dtype=S.dtype, device=S.device)
        return torch.linalg.solve_triangular(L, identity.expand_as(L), upper=False).mT, failed == 0
    h = LINE * math.ceil(r / (2 * LINE))
    R_1, found_1 = _triangular_root(S[:, :h, :h], rows)
    T = torch.bmm(R_1.mT, S[:, :h, h:])
    R_2, found_2 = _triangular_root(torch.baddbmm(S[:, h:, h:], T.mT, T, alpha=-1.0), rows)
    R = S.new_zeros(S.shape)
    R[:, :h, :h], R[:, h:, h:] = R_1, R_2
    torch.neg(torch.bmm(R_1, torch.bmm(T, R_2)), out=R[:, :h, h:])
    return R, found_1 & found_2


def _damped_root(S: Tensor, d: float) -> Tensor:
    """R of a matrix that has no Cholesky factor to speak of: L^-T (I - d (L^T L)^-1), in a form that cancels
    nothing large.
    """
    S = torch.where(_finite(S), S, 0.0)
    lengths = S.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
    inverse = torch.where(lengths > 0, 1.0 / lengths, 0.0)
    identity = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
    unit = S * inverse.unsqueeze(-1) * inverse.unsqueeze(-2)
    L, _ = torch.linalg.cholesky_ex(unit + d * identity)
    root = torch.linalg.solve_triangular(L, identity, upper=False)
    return inverse.unsqueeze(-1) * (root.mT @ (identity - d * (root @ root.mT)))


def eigen_root(S: Tensor) -> Tensor:
    """The symmetric root by eigenvalues, the reference: V w^(-1/2) V^T over eigenvalues above the floor."""
    S = torch.where(_finite(S), S, 0.0)
    w, V = eigh(S)
    floor = max(EIGEN_FLOOR, S.shape[-1] * torch.finfo(S.dtype).eps) * w[..., -1:]
    root = torch.where(w > floor, w, torch.inf).rsqrt()
    return (V * root.unsqueeze(-2)) @ V.mT


def iterated_root(
    S: Tensor, *, triples: Sequence[Triple] = TWELVE_STEPS, shift: float | None = None, shrink: float = 1.0
) -> Tensor:
    """The symmetric root by coupled iteration, from t = ||S||_F, Y = S / t + shift I, X = I:

        w = (a/g) I + (b/g^3) Y + (c/g^5) Y^2,   X <- X w,   Y <- sym(Y w^2),   g = shrink;   R = X / sqrt(t)

    All iterates are polynomials of S, so each eigenvalue goes its own way towards 1. Negative ones, which
    rounding makes of zeros, would run away: the shift, by default sqrt(r) eps, keeps them out. With
    `SEVEN_STEPS`, `PUBLISHED_SHIFT` and `PUBLISHED_SHRINK` it is LoRA-Muon's fast root; its shift is not
    invariant to the gauge (||R S R - I|| of 6.5e-4 at condition 100).
    """
    S = torch.where(_finite(S), S, 0.0)
    identity = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
    norm = torch.linalg.vector_norm(S, dim=(-2, -1), keepdim=True)
    positive = norm > 0
    norm = torch.where(positive, norm, 1.0)
    if shift is None:
        shift = S.shape[-1] ** 0.5 * torch.finfo(S.dtype).eps
    Y = S / norm + shift * identity
    X: Tensor | None = None
    for a, b, c in triples:
        w = (a / shrink) * identity + (b / shrink**3) * Y + (c / shrink**5) * (Y @ Y)
        X = w if X is None else X @ w
        Y = Y @ (w @ w)
        Y = (Y + Y.mT) / 2
    assert X is not None, "an iteration of no steps"
    return torch.where(positive, X * norm.rsqrt(), 0.0)


def _finite(S: Tensor) -> Tensor:
    return S.sum(dim=(-2, -1), keepdim=True).isfinite()
