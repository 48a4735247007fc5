"""The two operators of SWAN (arXiv 2412.13148): standardize lines, and whiten by coupled Newton-Schulz.

Inputs are (..., m, n), batched over the leading dimensions; results have shape and dtype of the input, which
is left alone; nothing waits for the device. No authors' code is public: constants are those on which
re-implementations agree.

With p = min(m, n), S the p x p Gram matrix of the smaller side, N transposed at the entrance if it is tall:

    Y_0 = S / tau,  Z_0 = I;   Y <- beta Y (3I - Z Y),  Z <- beta (3I - Z Y) Z     (old Y, Z on the right)
    O = tau^(-1/2) Z N,  tau = trace(S) = ||N||_F^2

beta = 1/2 converges to O = (N N^T)^(-1/2) N, the polar factor of N. All iterates are polynomials of S, so
each eigenvalue goes its own way: w = y z starts at that of S / tau and follows w <- beta^2 w (3 - w)^2, and O
has the singular values sqrt(w). SWAN's beta = 0.8 does not converge: the fixed point 3 - 1/beta = 1.75 is
unstable, and sqrt(w) wanders, up to 2 beta = 1.6.

Unsafe in bfloat16: Y and Z lose the commutation that the iteration lives on, and it explodes (1e13) or
becomes NaN on ill-conditioned square matrices. Use float32 or float64; TF32 is switched off here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowrise.linalg.norms import nonzero
from lowrise.linalg.precision import full_precision_matmul
from lowrise.linalg.symmetric import symmetric_products

COUPLED_BETA, COUPLED_STEPS = 0.8, 10  # three of four re-implementations of SWAN
DIAGONAL_BETA, DIAGONAL_STEPS = 0.4, 2  # its cheap variant, in two of them


def standardize(G: Tensor, *, dim: int = -1, center: bool = True) -> Tensor:
    """GradNorm: every line along `dim` to RMS 1, after taking its mean off if `center`; ||N||_F = sqrt(m n).

    A line that is constant (with `center`) or zero becomes zero instead of 0 / 0.
    """
    N = G - G.mean(dim=dim, keepdim=True) if center else G
    largest = N.abs().amax(dim=dim, keepdim=True)
    # Rounding of the mean leaves a constant line with entries of this relative size: noise, to be zeroed.
    noise = 8 * torch.finfo(G.dtype).eps * G.abs().amax(dim=dim, keepdim=True) if center else 0.0
    # so that squares neither overflow nor vanish
    N = (N / nonzero(largest)).masked_fill_(largest <= noise, 0.0)
    rms = N.square().mean(dim=dim, keepdim=True).sqrt_()
    return N.div_(nonzero(rms))


def whiten(N: Tensor, *, steps: int = COUPLED_STEPS, beta: float = COUPLED_BETA) -> Tensor:
    """O by `steps` coupled iterations. A zero matrix gives zero.

    FLOPs: 2 p^2 q (Gram) + 6 p^3 for each step but the first (Z_0 = I, and the last Y is not needed) +
    2 p^2 q (apply), q = max(m, n).
    """
    (ortho,) = whiten_each([N.reshape(-1, *N.shape[-2:])], steps=steps, beta=beta)
    return ortho.reshape(N.shape)


def whiten_each(
    Ns: Sequence[Tensor], *, steps: int = COUPLED_STEPS, beta: float = COUPLED_BETA
) -> list[Tensor]:
    """`whiten` of several stacks (b, m, n): those of one smaller side share all products but two. The results
    of tall ones are transposed views.
    """
    sides: dict[int, list[int]] = {}
    for i, N in enumerate(Ns):
        sides.setdefault(min(N.shape[-2:]), []).append(i)
    results: dict[int, Tensor] = {}
    for places in sides.values():
        seen = [_wide(Ns[i]) for i in places]
        moved = _whiten_together([X for X, _ in seen], steps, beta)
        results.update(
            (i, ortho if wide else ortho.mT) for i, ortho, (_, wide) in zip(places, moved, seen, strict=True)
        )
    return [results[i] for i in range(len(Ns))]


def _whiten_together(Xs: Sequence[Tensor], steps: int, beta: float) -> list[Tensor]:
    """O of stacks (b, p, q), p <= q, of one p."""
    counts = [len(X) for X in Xs]
    with full_precision_matmul(Xs[0].device):
        S = symmetric_products([(X, X.mT) for X in Xs])
        trace = _trace(S)
        Y = S / trace
        three = (3.0 * _identity(S)).expand(S.shape)
        T = three - Y  # Z_0 = I
        Z = beta * T
        for _ in range(steps - 1):
            Y = _times(Y, T, beta)
            T = torch.baddbmm(three, Z, Y, alpha=-1.0)
            Z = _times(T, Z, beta)
        factors = Z.mul_(trace.rsqrt()).split(counts)
        return [torch.bmm(factor, X) for factor, X in zip(factors, Xs, strict=True)]


def whiten_diagonal(N: Tensor, *, steps: int = DIAGONAL_STEPS, beta: float = DIAGONAL_BETA) -> Tensor:
    """NSDS, the same with diagonals in place of full matrices; no p x p product. Experimental.

    Y <- beta Y Diag(3 - diag(Z) diag(Y)),  Z <- beta (3I - Diag(diag Z) Y) Diag(diag Z)     (old values)

    from Y_0 = p S / trace(S). The scale of Y_0 is not published; with diag(Y) of about 1/p, as for ||Y||_F =
    1, two steps whiten nothing. Cosine to the polar factor on Gaussian N, with that of N itself: 64 x 172
    0.985 (0.952), 64 x 64 0.92 (0.85); ill-conditioned square matrices gain next to nothing.
    """
    X, wide = _wide(N)
    with full_precision_matmul(N.device):
        S, trace = _gram(X)
        scale = trace / S.shape[-1]
        Y = S / scale
        Z = _identity(S).expand(S.shape)
        three = 3.0 * Z
        for _ in range(steps):
            y = Y.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)  # (..., 1, p)
            z = Z.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
            Y, Z = beta * Y * (3.0 - z * y), beta * (three - z.mT * Y) * z
        ortho = (Z @ X) * scale.rsqrt()
    return ortho if wide else ortho.mT


def _times(A: Tensor, B: Tensor, factor: float) -> Tensor:
    """factor A B in one operation; A, B (batch, p, p)."""
    return torch.baddbmm(A, A, B, beta=0.0, alpha=factor)


def _wide(N: Tensor) -> tuple[Tensor, bool]:
    wide = N.shape[-2] <= N.shape[-1]
    return (N if wide else N.mT), wide


def _gram(X: Tensor) -> tuple[Tensor, Tensor]:
    """X X^T (..., p, p) and its trace (..., 1, 1), 1 where it is zero."""
    S = X @ X.mT
    return S, _trace(S)


def _trace(S: Tensor) -> Tensor:
    return nonzero(S.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None])


def _identity(S: Tensor) -> Tensor:
    return torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
