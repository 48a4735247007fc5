"""Spectral norms: a running estimate from below, a bound from above, the exact value, and those of a product.

Inputs are (..., m, n), batched over the leading dimensions. `power_iteration` and `spectral_norm_upper` never
wait for the device; the two exact ones call LAPACK-like routines, which do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowrise.linalg.precision import widest
from lowrise.linalg.solvers import eigvalsh, power_of_four, svdvals
from lowrise.linalg.stacks import joined, laid_out

# Relative margin on top of `spectral_norm_upper`: covers rounding the float64 result to float32 (6e-8) a
# hundred times.
UPPER_GUARD = 1e-5


def largest_entry(X: Tensor) -> Tensor:
    """max|X| of each matrix, (..., 1, 1), without a matrix of absolute values; NaN where X has one."""
    return torch.maximum(X.amax(dim=(-2, -1), keepdim=True), -X.amin(dim=(-2, -1), keepdim=True))


def largest_entries(Xs: Sequence[Tensor]) -> Tensor:
    """`largest_entry` of the matrices of several stacks (b, m, n), (sum of b, 1, 1): in a number of
    operations that does not depend on the stacks, but on a CPU, where torch's maximum norm takes five times
    as long as two passes.
    """
    if Xs[0].device.type != "cpu":
        each = torch._foreach_norm([x for X in Xs for x in X.unbind()], torch.inf)
        return torch.stack(each)[:, None, None]
    return joined([largest_entry(X) for X in Xs])


def frobenius(Xs: Sequence[Tensor]) -> Tensor:
    """||X||_F of the matrices of several stacks (b, m, n), (sum of b, 1, 1), likewise."""
    return torch.stack(torch._foreach_norm([x for X in Xs for x in X.unbind()]))[:, None, None]


def line_norms(Xs: Sequence[Tensor], dims: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Norms of the lines of each stack (b, m, n) along its `dim`, -1 or -2: laid out, flat, and as (b, m, 1)
    or (b, 1, n) of each.
    """
    pairs = list(zip(Xs, dims, strict=True))
    sizes = [(X.shape[0], 1, X.shape[2]) if dim == -2 else (*X.shape[:2], 1) for X, dim in pairs]
    flat, parts = laid_out(Xs[0], [torch.Size(size) for size in sizes])
    for X, dim, part in zip(Xs, dims, parts, strict=True):
        torch.linalg.vector_norm(X, dim=dim, keepdim=True, out=part)
    return flat, parts


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
    sigma, (v,) = power_iteration_each(
        [X.reshape(-1, *X.shape[-2:])], [u.reshape(-1, u.shape[-1])], iters=iters
    )
    return sigma.reshape(X.shape[:-2]), v.reshape(u.shape)


def power_iteration_each(
    Xs: Sequence[Tensor], us: Sequence[Tensor], *, iters: int = 1
) -> tuple[Tensor, list[Tensor]]:
    """The same for several stacks X (b, m, n), u (b, m), any m and one n: what has n numbers a matrix is done
    once for all. sigma (sum of b,), u (b, m) of each stack.

    The first u/|u| cancels in v/|v|, so it is left out unless iters = 0.
    """
    counts = [len(X) for X in Xs]
    moved = list(us) if iters else [_unit(u)[0] for u in us]
    v, sigma = _unit(_transposed_times(Xs, moved))
    for _ in range(iters):
        parts = zip(Xs, v.split(counts), strict=True)
        moved = [_unit(torch.bmm(X, own.unsqueeze(-1)).squeeze(-1))[0] for X, own in parts]
        v, sigma = _unit(_transposed_times(Xs, moved))
    found = (sigma > 0).split(counts)
    kept = [torch.where(flag, new, old) for flag, new, old in zip(found, moved, us, strict=True)]
    return sigma.squeeze(-1), kept


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
    Y = X.to(widest(X.device))
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


def _transposed_times(Xs: Sequence[Tensor], us: Sequence[Tensor]) -> Tensor:
    """X^T u (sum of b, n) as (u^T X)^T: the same sums, and on a CPU less than half the time of a product with
    X^T.
    """
    return joined([torch.bmm(u.unsqueeze(-2), X).squeeze(-2) for X, u in zip(Xs, us, strict=True)])


def _unit(w: Tensor) -> tuple[Tensor, Tensor]:
    """w / |w| (b, n), or 0 where w = 0, and |w| (b, 1); scaled, so 1e30 in float32 is no overflow."""
    largest = torch.linalg.vector_norm(w, torch.inf, dim=-1, keepdim=True)
    scaled = w / nonzero(largest)
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / nonzero(length), largest * length
