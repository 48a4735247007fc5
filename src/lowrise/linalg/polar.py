"""The polar factor of a matrix: U V^T for X = U diag(s) V^T, exactly (SVD) or nearly (matrix polynomials).

Every function takes X of shape (..., m, n), is batched over the leading dimensions, returns the shape and
dtype it was given, leaves its input alone and (but for `polar_svd`) never waits for the device.

The polynomial iterations all have one form. With the Gram matrix of the smaller side, S = X^T X for m >= n:

    X <- a X + X (b S + c S S)          an odd polynomial a x + b x^3 + c x^5 on every singular value

The iteration with X X^T on the left is the same map, so a wide matrix is transposed once at the entrance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lowrise.linalg.norms import largest_entry
from lowrise.linalg.solvers import svd

Triple = tuple[float, float, float]

# Keller Jordan's quintic (KellerJordan/Muon, muon.py; also torch.optim.Muon). Made for speed, not for
# convergence: it sends singular values into [0.6818, 1.2024] and keeps them there.
QUINTIC: Triple = (3.4445, -4.7750, 2.0315)

# sup of the quintic iterated any number of times on [0, 1]: its local maximum p(0.55453) = 1.20237, rounded
# up. [0, 1.2024] is mapped into itself, so the number of steps does not matter.
QUINTIC_SUPREMUM = 1.2024

# Polar Express, arXiv 2505.16932: one triple a step, fast growth first, the fixed point last.
POLAR_EXPRESS: tuple[Triple, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)


def newton_schulz(
    X: Tensor,
    *,
    steps: int = 5,
    coefficients: Sequence[float] = QUINTIC,
    eps: float = 1e-7,
    eps_rule: Literal["add", "max"] = "add",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Iterate one quintic `steps` times from X / (||X||_F + eps), or from X / max(||X||_F, eps).

    eps_rule "add" is Spectron's and Keller Jordan's normalization, "max" that of torch.optim.Muon. With eps =
    0 the result does not depend on the scale of X at all (float32 inputs of 1e-30 and 1e30 give the same
    factor); a positive eps shrinks inputs near it, as published. Zero gives zero. `dtype` is that of the
    iteration (default: X's own).

    Range with QUINTIC, five steps, exact arithmetic: singular values above 0.0015 ||X||_F end in [0.6818,
    1.2024], smaller ones stay small; none ends above 1.20237 (`QUINTIC_SUPREMUM`).
    """
    a, b, c = coefficients
    Y = _frobenius_normalized(X, eps=eps, eps_rule=eps_rule)
    return _iterate(Y.to(dtype or X.dtype), [(a, b, c)] * steps).to(X.dtype)


def polar_express(X: Tensor, *, steps: int = 7, safety: float = 1.01) -> Tensor:
    """Polar Express (arXiv 2505.16932) from X / (safety ||X||_F), its triples divided by (safety, safety^3,
    safety^5).

    With seven steps and safety 1.01, in exact arithmetic: no singular value ends above 0.9999984; those above
    1e-2 of ||X||_F end above 0.999995, those above 1e-3 above 0.99999. Six steps: 1.0012 at most; five:
    1.1236. Rounding in float32 adds less than 8 sqrt(min(m, n)) * 1.2e-7 (measured, see
    tests/invariants/test_polar.py). Scale free.
    """
    if not 1 <= steps <= len(POLAR_EXPRESS):
        raise ValueError(
            f"polar_express: steps is {steps}; choose 1 to {len(POLAR_EXPRESS)}, the triples there are"
        )
    triples = [(a / safety, b / safety**3, c / safety**5) for a, b, c in POLAR_EXPRESS[:steps]]
    return _iterate(_frobenius_normalized(X, eps=0.0).div_(safety), triples)


def polar_svd(X: Tensor, *, rtol: float = 1e-12) -> Tensor:
    """The polar factor by SVD, the reference for the others. Singular values <= rtol times the largest are
    dropped.

    A null direction has no polar factor (an SVD routine returns some arbitrary one), so it gives 0, as the
    iterations do. rtol is at least 8 machine epsilons: below that a computed singular value is noise. Waits
    for the device.
    """
    U, s, Vh = svd(X)
    kept = s > max(rtol, 8 * torch.finfo(X.dtype).eps) * s[..., :1]
    return (U * kept.unsqueeze(-2)) @ Vh


def rounding_guard(columns: int, dtype: torch.dtype) -> float:
    """1 + the most by which rounding in `dtype` may push ||polar factor||_2 above its bound (relative,
    measured).
    """
    return 1.0 + 8.0 * math.sqrt(columns) * torch.finfo(dtype).eps


def _frobenius_normalized(X: Tensor, *, eps: float, eps_rule: str = "add") -> Tensor:
    """X / (||X||_F + eps) in a new tensor, computed from X / max|X| so that the squares cannot overflow or
    vanish.
    """
    largest = largest_entry(X)
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    Y = X / largest
    norm = torch.linalg.vector_norm(Y, dim=(-2, -1), keepdim=True)
    scaled_eps = eps / largest
    norm = norm + scaled_eps if eps_rule == "add" else torch.maximum(norm, scaled_eps)
    return Y.div_(torch.where(norm > 0, norm, torch.ones_like(norm)))


def _iterate(X: Tensor, triples: Sequence[Triple]) -> Tensor:
    """Apply the odd quintics one after another to the singular values of X (..., m, n)."""
    shape = X.shape
    wide = shape[-2] < shape[-1]
    Y = X.reshape(-1, shape[-2], shape[-1])
    if wide:
        Y = Y.mT
    for a, b, c in triples:
        S = torch.bmm(Y.mT, Y)  # (batch, k, k), k the smaller side
        P = torch.baddbmm(S, S, S, beta=b, alpha=c)
        Y = torch.baddbmm(Y, Y, P, beta=a)
    return (Y.mT if wide else Y).reshape(shape)
