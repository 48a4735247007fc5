"""How fresh factors are drawn. Every entry of `INITS` returns A (m x r) and B (n x r) with W = A @ B.T.

`std` is the standard deviation of an entry of the dense weight that the factors stand for; only `spectral`
and `auto` use it. Draws are made in float32 whatever the dtype of the parameters (so that bfloat16 weights
are the rounded float32 ones), from `generator` on the generator's own device: a CPU generator gives one and
the same draw on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.linalg.balance import column_signs
from lowrise.linalg.orthonormal import qf
from lowrise.linalg.solvers import eigh, power_of_four


class Draw(Protocol):
    """`draw(rows, columns, std)`: rows x columns of N(0, std^2) in float32."""

    def __call__(self, rows: int, columns: int, std: float) -> Tensor: ...


FactorInit = Callable[[int, int, int, float, Draw], tuple[Tensor, Tensor]]
"""(m, n, r, std, draw) -> (A, B)."""


def normal(
    rows: int, columns: int, std: float, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """rows x columns of N(0, std^2) in float32: the one draw that all initial weights of this project go
    through.
    """
    source = device if generator is None else generator.device
    return (
        torch.randn(rows, columns, generator=generator, device=source, dtype=torch.float32)
        .to(device)
        .mul_(std)
    )


def uniform(
    rows: int, columns: int, bound: float, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """rows x columns, uniform in +-bound, in float32: torch's `kaiming_uniform_(a=sqrt(5))` for
    bound = 1 / sqrt(fan-in).
    """
    source = device if generator is None else generator.device
    drawn = torch.rand(rows, columns, generator=generator, device=source, dtype=torch.float32)
    return drawn.mul_(2 * bound).sub_(bound).to(device)


def check_finite(weight: Tensor, where: str = "", what: str = "weight") -> None:
    """Raise `UsageError` for a weight that cannot be decomposed, or a bias that cannot be taken over. Waits
    for the device."""
    if not torch.isfinite(weight).all():
        raise UsageError(
            f"{where}the {what} has entries that are not finite, so it cannot be factorized from them; "
            "load a sound checkpoint, or skip this layer."
        )


def balanced_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best rank-r approximation of a weight (m x n), split evenly: A = U sqrt(S), B = V sqrt(S), in
    float64.

    With p = min(m, n) and W tall (else transposed): eigenvectors V of W.T W, the r leading ones; S = column
    norms of W V; A = W V S^-1/2, B = V S^1/2. This costs one p x p eigen-decomposition instead of an m x n
    SVD and loses nothing: A @ B.T = W V V.T holds to rounding whatever the error of the eigenvalues, and a
    direction V that is off by e costs e^2. Columns are signed so that the largest entry of each column of V
    is positive. Raises `UsageError` for a weight that is not finite.
    """
    check_finite(weight)
    tall = weight.shape[0] >= weight.shape[1]
    W = (weight if tall else weight.T).detach().to(torch.float64)
    scale = power_of_four(W)
    W = W / scale
    V = eigh(W.T @ W)[1].flip(-1)[:, :rank]  # p x r, descending
    V = V * column_signs(V)
    WV = W @ V
    root = WV.norm(dim=0).sqrt()  # sqrt(s); 0 where W has no such direction
    A = torch.where(root > 0, WV / root.clamp_min(torch.finfo(torch.float64).tiny), 0.0) * scale.sqrt()
    B = V * root * scale.sqrt()
    return (A, B) if tall else (B, A)


def spectral(m: int, n: int, r: int, std: float, draw: Draw) -> tuple[Tensor, Tensor]:
    """Truncated SVD of the weight that the dense model would have drawn from the same generator (Khodak et
    al. 2021, arXiv 2105.01029).

    Entries of W are N(0, std^2); both factors have the same singular values, which is the gauge of least
    ||A||_2 + ||B||_2.
    """
    return balanced_factors(draw(m, n, std), r)


def xavier(m: int, n: int, r: int, std: float, draw: Draw) -> tuple[Tensor, Tensor]:
    """Std sqrt(2 / (rows + r)) for each factor: LORO's default (Mo, Huang, Pan 2025; authors'
    `lowrank_module.py`, "xavier").
    """
    A = draw(m, r, math.sqrt(2 / (m + r)))
    B = draw(n, r, math.sqrt(2 / (n + r)))
    return A, B


def auto(m: int, n: int, r: int, std: float, draw: Draw) -> tuple[Tensor, Tensor]:
    """Std (std^2 / r)^(1/4) for both factors, so that an entry of W has the dense model's std (LORO's code,
    "auto").
    """
    factor_std = (std * std / r) ** 0.25
    A = draw(m, r, factor_std)
    B = draw(n, r, factor_std)
    return A, B


def kaiming(m: int, n: int, r: int, std: float, draw: Draw) -> tuple[Tensor, Tensor]:
    """Std sqrt(2 / r) for both factors (LORO's code, "kaiming"). Entries of W get std 2 / sqrt(r): far too
    large; kept for comparison.
    """
    factor_std = math.sqrt(2 / r)
    A = draw(m, r, factor_std)
    B = draw(n, r, factor_std)
    return A, B


def orthogonal(m: int, n: int, r: int, std: float, draw: Draw) -> tuple[Tensor, Tensor]:
    """Orthonormal columns, uniformly distributed (Mezzadri 2007), so all r singular values of W are 1 (LORO's
    code, "orth").

    The authors' version silently leaves N(0, 1) entries in bfloat16; this one is right in every dtype, being
    computed in float64.
    """
    A = qf(draw(m, r, 1.0).to(torch.float64))
    B = qf(draw(n, r, 1.0).to(torch.float64))
    return A, B


def cola(m: int, n: int, r: int, std: float, draw: Draw) -> tuple[Tensor, Tensor]:
    """Std r^(-1/4) (m + n)^(-1/4) for both factors, so that entries of A @ B.T have std (m + n)^(-1/2) (CoLA,
    Liu et al. 2025; authors' `ColaLayer`).
    """
    factor_std = (r * (m + n)) ** -0.25
    A = draw(m, r, factor_std)
    B = draw(n, r, factor_std)
    return A, B


INITS: dict[str, FactorInit] = {
    "spectral": spectral,
    "xavier": xavier,
    "auto": auto,
    "kaiming": kaiming,
    "orthogonal": orthogonal,
    "cola": cola,
}


def check_init(init: str, init_std: float) -> None:
    """Raise `UsageError` for an init that is not in the table or an impossible std."""
    if init not in INITS:
        raise UsageError(f"Unknown init {init!r} for a low-rank layer; choose one of {', '.join(INITS)}.")
    if not init_std > 0:
        raise UsageError(f"init_std must be positive, not {init_std!r}.")
