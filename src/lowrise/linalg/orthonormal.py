"""Matrices with orthonormal columns (Stiefel manifold): making them, moving them, measuring them.

X is (..., p, r) with X^T X = I, Z (..., p, r) a step, batched over the leading dimensions. qf(Y) is the Q of
Y = Q R with diag(R) > 0, which is unique for full column rank.

| function | gives | max abs(Q^T Q - I) in float32, measured | waits for the device |
|---|---|---|---|
| `qf` | qf(Y) by Householder reflections, any Y | 1.2e-6 up to 4096 x 1024 | may |
| `retract_qr` | qf(X + Z) by Cholesky | 8e-7 up to 4096 x 1024 | never |
| `retract_polar` | (X + Z) ((X + Z)^T (X + Z))^(-1/2) | 6e-7 at 512 x 128 | yes (eigenvalues) |

Never take the polar factor of X + Z by `torch.linalg.svd`: all singular values are near 1, and LAPACK's
divide and conquer then fails to converge. The products here need true float32 (not TF32, which leaves 1e-3):
call within `full_precision_matmul`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowrise.linalg.solvers import eigh, power_of_four

# One Cholesky pass suffices while no column of X + Z is longer than sqrt(2) (a turn of more than 45 degrees)
# and none lies within 30 degrees of the span of those before it; the error is then that of rounding.
LONGEST_SQUARED = 2.0
LEAST_DIAGONAL = 0.5
# Two passes suffice while every column keeps this sine to the span of those before it.
LEAST_SINE = 0.05


def qf(Y: Tensor) -> Tensor:
    """The Q of Y = Q R with diag(R) >= 0, by Householder reflections: the reference, and right for any Y.

    A zero on the diagonal of R counts as positive (`torch.sign` would make a zero column of it).
    """
    Q, R = torch.linalg.qr(Y)
    return Q * torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2)


def retract_qr(X: Tensor, Z: Tensor) -> Tensor:
    """qf(X + Z), orthonormal to rounding for every finite Z.

    1. Y = X + Z; C = Y^T Y; L L^T = C; Q = Y L^-T. As L^T has a positive diagonal, Q is qf(Y).
    2. Where Y is far from orthonormal (see the constants), a second pass over Q.
    3. Where columns of Y are nearly dependent, qf has no stable value: the step is cut to a Frobenius norm of
       1/2, and X + a Z has singular values in [1/2, 3/2].

    The choice between 2 and 3 is made per matrix and on the device. A CPU skips them where nothing needs
    them; on other devices asking would mean waiting, so the second pass is always made.
    """
    return qr_from(X, X + Z)


def qr_from(X: Tensor, Y: Tensor) -> Tensor:
    """`retract_qr` from X to where the step has led, Y = X + Z."""
    Q, diagonal, longest = _cholesky_pass(Y)
    sound = (longest <= LONGEST_SQUARED) & (diagonal.amin(dim=-1) >= LEAST_DIAGONAL)
    if Y.device.type == "cpu" and bool(sound.all()):
        return Q
    lengths = torch.linalg.vector_norm(Y, dim=-2)
    usable = (diagonal > LEAST_SINE * lengths).all(dim=-1)[..., None, None]
    norm = torch.linalg.vector_norm(Y - X, dim=(-2, -1), keepdim=True)
    shortened = torch.lerp(X, Y, 0.5 / norm.clamp_min(0.5))
    again, diagonal, _ = _cholesky_pass(torch.where(usable, Q, shortened))
    # Fails only if X itself had dependent columns; it then stays as it was.
    return torch.where((diagonal > 0).all(dim=-1)[..., None, None], again, X)


def _cholesky_pass(Y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Y L^-T for L L^T = Y^T Y, diag(L) (zeros where there is no such L), and the longest squared column."""
    C = Y.mT @ Y
    L, info = torch.linalg.cholesky_ex(C)
    eye = torch.eye(C.shape[-1], dtype=C.dtype, device=C.device)
    found = (info == 0)[..., None, None]
    Q = torch.linalg.solve_triangular(torch.where(found, L, eye).mT, Y, upper=True, left=False)
    diagonal = torch.where(found.squeeze(-1), L.diagonal(dim1=-2, dim2=-1), 0.0)
    return Q, diagonal, C.diagonal(dim1=-2, dim2=-1).amax(dim=-1)


def retract_polar(X: Tensor, Z: Tensor) -> Tensor:
    """The polar factor of X + Z: eigenvectors of its Gram matrix, then one Newton-Schulz step.

    Alone, eigenvectors leave an error of 2e-6 in float32; the step Q (3 I - Q^T Q) / 2 squares it away.
    For X + Z of full column rank; where it is not, or not finite, X. Waits for the device.
    """
    return polar_from(X, X + Z)


def polar_from(X: Tensor, Y: Tensor) -> Tensor:
    """`retract_polar` from X to where the step has led, Y = X + Z."""
    Y = Y / power_of_four(Y)  # the factor is free of scale, its squares are not
    values, E = eigh(Y.mT @ Y)
    Q = Y @ ((E * values.clamp_min(torch.finfo(Y.dtype).tiny).rsqrt().unsqueeze(-2)) @ E.mT)
    moved = 1.5 * Q - 0.5 * (Q @ (Q.mT @ Q))
    sound = values[..., 0] > Y.shape[-1] * torch.finfo(Y.dtype).eps * values[..., -1]  # NaN is not
    return torch.where(sound[..., None, None], moved, X)


def tangent(X: Tensor, Z: Tensor) -> Tensor:
    """Z - X sym(X^T Z), sym(A) = (A + A^T) / 2: the orthogonal projection of Z to the tangent space at X."""
    S = X.mT @ Z
    return Z - X @ ((S + S.mT) / 2)


def complement(X: Tensor, K: Tensor) -> Tensor:
    """Orthonormal columns, orthogonal to those of X (p x r), from draws K (p x d), r + d <= p. In float64.

    Twice K <- K - X (X^T K), qf, once more K - X (X^T K), qf: one projection alone leaves what cancellation
    leaves.
    """
    X64, Q = X.to(torch.float64), K.to(torch.float64)
    for _ in range(2):
        Q = Q - X64 @ (X64.mT @ Q)
    Q = qf(Q)
    return qf(Q - X64 @ (X64.mT @ Q)).to(X.dtype)


def orthonormality_error(X: Tensor) -> Tensor:
    """max abs(X^T X - I) over the last two dimensions, computed in float64 whatever the dtype of X."""
    X64 = X.to(torch.float64)
    eye = torch.eye(X.shape[-1], dtype=torch.float64, device=X.device)
    return (X64.mT @ X64 - eye).abs().amax(dim=(-2, -1))
