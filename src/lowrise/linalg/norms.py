"""Spectral norms: a running estimate from below, a bound from above, the exact value, and those of a product.

Inputs are (..., m, n), batched over the leading dimensions. `power_iteration` and `spectral_norm_upper` never
wait for the device; the two exact ones call LAPACK-like routines, which do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowrise.linalg.solvers import eigvalsh, power_of_four, svdvals

# Relative margin on top of `spectral_norm_upper`: covers rounding the float64 result to float32 (6e-8) a
# hundred times.
UPPER_GUARD = 1e-5


def largest_entry(X: Tensor) -> Tensor:
    """max|X| of each matrix, (..., 1, 1), without a matrix of absolute values; NaN where X has one."""
    return torch.maximum(X.amax(dim=(-2, -1), keepdim=True), -X.amin(dim=(-2, -1), keepdim=True))


def nonzero(x: Tensor) -> Tensor:
    """x >= 0 to divide by: zeros (and subnormal numbers) as the smallest normal one, NaN as it is."""
    return x.clamp_min(torch.finfo(x.dtype).tiny)


def power_iteration(X: Tensor, u: Tensor, *, iters: int = 1) -> tuple[Tensor, Tensor]:
    """Algorithm 3 of Spectron: estimate ||X||_2 from the left vector u of the step before.

    u <- u/|u|; v <- X^T u/|.|; `iters` times { u <- X v/|.|; v <- X^T u/|.| }; sigma = |X^T u|.

    X (..., m, n), u (..., m) -> sigma (...), u (..., m). sigma <= ||X||_2 always, up to rounding.
    Where X^T u = 0 (a factor that is still zero) sigma is 0 and u is returned as it came: a u that became
    zero would stay zero for ever, also after X has grown. Decided by `torch.where`, without waiting for the
    device.
    """
    start, _ = _unit(u, u)
    u = start
    v, sigma = _unit(_transposed_times(X, u), torch.zeros_like(X[..., 0, :]))
    for _ in range(iters):
        u, _ = _unit((X @ v.unsqueeze(-1)).squeeze(-1), u)
        v, sigma = _unit(_transposed_times(X, u), v)
    return sigma, torch.where((sigma > 0).unsqueeze(-1), u, start)


def spectral_norm_upper(X: Tensor, *, squarings: int = 12) -> Tensor:
    """A number between ||X||_2 and k^(1/2^(squarings + 2)) (1 + 1e-5) ||X||_2, k = min(m, n).

    For the smaller Gram matrix S and p = 2^squarings: lambda_max(S) <= ||S^p||_F^(1/p). With f_0 = ||S||_F,
    S_0 = S/f_0, f_{j+1} = ||S_j S_j||_F, S_{j+1} = S_j S_j / f_{j+1}, that bound is
    exp(log f_0 + log f_1 / 2 + log f_2 / 4 + ...). An error in squaring j enters divided by 2^j, so the Gram
    matrix decides the accuracy; it is formed in float64 (relative error below m k 1e-16), and 1 + 1e-5 covers
    that and the rounding of the result to float32. Slack for equal singular values, the worst case: 1.0003 at
    k = 128, 1.0005 at 2048.

    Twelve small matrix products instead of an eigensolver, because `torch.linalg.eigvalsh` waits for the
    device. A device without float64 (mps) works in float32, where the guard is measured and not proved.
    Returns (...), in float64 for float64 input and else in float32. Zero for a zero matrix.
    """
    result_dtype = torch.float64 if X.dtype == torch.float64 else torch.float32
    Y = X.to(torch.float32 if X.device.type == "mps" else torch.float64)
    largest = largest_entry(Y)
    positive = largest > 0
    # Entries of at most 1, so that the squares neither overflow nor vanish.
    Y = Y / nonzero(largest)
    S = Y.mT @ Y if X.shape[-2] >= X.shape[-1] else Y @ Y.mT
    log_eigenvalue = torch.zeros_like(largest)
    for j in range(squarings + 1):
        if j > 0:
            S = S @ S
        f = torch.linalg.vector_norm(S, dim=(-2, -1), keepdim=True)
        f = torch.where(positive, f, torch.ones_like(f))
        S = S / f
        log_eigenvalue = log_eigenvalue + f.log() / 2**j
    norm = largest * (log_eigenvalue / 2).exp() * (1.0 + UPPER_GUARD)
    return norm.squeeze(-1).squeeze(-1).to(result_dtype)


def spectral_norm(X: Tensor) -> Tensor:
    """||X||_2 by singular values, (...). Exact to rounding; waits for the device."""
    return svdvals(X)[..., 0]


def singular_values(X: Tensor) -> Tensor:
    """All singular values of X (..., m, n), descending, in float64; waits for the device.

    From the eigenvalues of the smaller Gram matrix, in float64: values above 1e-6 of the largest are right to
    1e-3, and for wide matrices it takes a half to a third of the time of `torch.linalg.svdvals` (CPU; equal
    for square ones of 512). A device without float64 (mps) decomposes X itself.
    """
    if X.device.type == "mps":
        return svdvals(X)
    Y = X.double()
    scale = power_of_four(Y)
    Y = Y / scale
    S = Y.mT @ Y if Y.shape[-2] >= Y.shape[-1] else Y @ Y.mT
    return eigvalsh(S).clamp_(min=0.0).sqrt_().flip(-1) * scale.squeeze(-1)


def product_singular_values(L: Tensor, R: Tensor) -> Tensor:
    """Singular values of L @ R^T, descending, without forming it: QR of both, SVD of the k x k core. O((m +
    n) k^2).

    L (..., m, k), R (..., n, k) -> (..., min(m, n, k)), in float64 (but for mps), as the product of float32
    factors may be beyond float32. This is how telemetry reads a factored weight or update.
    """
    a, b = power_of_four(L), power_of_four(R)
    left, right = (torch.linalg.qr(X / c, mode="r").R for X, c in ((L, a), (R, b)))
    values = svdvals(left @ right.mT)
    wide = values.dtype if values.device.type == "mps" else torch.float64
    return values.to(wide) * a.squeeze(-1).to(wide) * b.squeeze(-1).to(wide)


def _transposed_times(X: Tensor, u: Tensor) -> Tensor:
    """X^T u as (u^T X)^T: the same sums, and on a CPU less than half the time of a product with X^T."""
    return (u.unsqueeze(-2) @ X).squeeze(-2)


def _unit(w: Tensor, otherwise: Tensor) -> tuple[Tensor, Tensor]:
    """(w / |w|, |w|) over the last dimension, or (otherwise, 0) where w = 0; scaled, so 1e30 in float32 is no
    overflow.
    """
    largest = w.abs().amax(dim=-1, keepdim=True)
    positive = largest > 0
    scaled = w / nonzero(largest)
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    unit = torch.where(positive, scaled / nonzero(length), otherwise)
    return unit, (largest * length).squeeze(-1)
