"""LORO's elementwise part as pure functions: Adam with the epsilon of the old Hugging Face form (moments and
denominators: `rules/adamw.py`).

Per parameter p with gradient g; t = number of this update since its moments were last dropped, from 1:

1. m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g g
2. s = lr sqrt(1 - b2^t) / (1 - b1^t);  d = m / (sqrt(v) + eps)
   eps comes before the bias correction, as in the authors' code: it acts like eps / sqrt(1 - b2^t) after it
   (Adam's paper, torch.optim), 3e-5 instead of 1e-6 at t = 1
3. p <- p - s c d, c a scale of its own per parameter
4. p <- p (1 - decay), after the step, on the new value
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def step_size(lr: float, t: int, betas: tuple[float, float]) -> float:
    """s of step 2."""
    return lr * math.sqrt(1.0 - betas[1] ** t) / (1.0 - betas[0] ** t)


def adam_step_(
    params: list[Tensor],
    exp_avgs: list[Tensor],
    denominators: list[Tensor],
    sizes: Sequence[float],
    decays: Sequence[float] | None,
) -> None:
    """Steps 3 and 4 in place, `sizes` being s c; computed in the moments' dtype and rounded once to the
    parameter's.
    """
    narrow = [i for i, (p, m) in enumerate(zip(params, exp_avgs, strict=True)) if p.dtype != m.dtype]
    targets = list(params)
    for i in narrow:
        targets[i] = params[i].to(exp_avgs[i].dtype)
    torch._foreach_addcdiv_(targets, exp_avgs, denominators, [-size for size in sizes])
    if decays is not None:
        torch._foreach_mul_(targets, [1.0 - decay for decay in decays])
    for i in narrow:
        params[i].copy_(targets[i])


def consistent_direction(
    m_A: Tensor, m_B: Tensor, v_A: Tensor, v_B: Tensor, t: int, betas: tuple[float, float], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(D_A, D_B, length) of the "consistent" exact step for a batch of pairs, (b, m, r) and (b, n, r),
    length (b,).

    One denominator for the whole pair, nu = sqrt(mean of the bias-corrected v) + eps, so that D_A and D_B are
    still derivatives of one function by the two factors. The length of the tangent vector is not that of D,
    which depends on the split into A and B, but what Adam would give to its r (m + n - r) coordinates in an
    orthonormal basis: their number's root times rho = the root mean square of D, 1 for a single gradient
    and less the more the gradients cancel.
    """
    m, n, r = m_A.shape[-2], m_B.shape[-2], m_A.shape[-1]
    count = r * (m + n)
    total = v_A.sum(dim=(-2, -1)) + v_B.sum(dim=(-2, -1))
    nu = (total / (count * (1.0 - betas[1] ** t))).sqrt() + eps
    scale = (1.0 / ((1.0 - betas[0] ** t) * nu))[:, None, None]
    D_A, D_B = m_A * scale, m_B * scale
    square = torch.linalg.matrix_norm(D_A).square() + torch.linalg.matrix_norm(D_B).square()
    return D_A, D_B, (square / count * (r * (m + n - r))).sqrt()
