"""LoRA-Muon's directions for batches of pairs, as pure functions.

A (b, m, r), B (b, n, r) and what belongs to them; R_A R_A^T = (A^T A)^-1, R_B likewise
(`linalg/inverse_root.py`). All that comes out is the same for R_A Q, Q orthogonal, and moves W = A B^T the
same whatever the split into A and B.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lowrise.linalg.norms import frobenius, largest_entry
from lowrise.linalg.polar import (
    POLAR_EIGHT,
    POLAR_EXPRESS,
    QUINTIC,
    QUINTIC_SUPREMUM,
    Form,
    Triple,
    polar_svd,
    polar_times,
)

Msign = Literal["quintic5", "polar8", "pe7", "svd"]

SCHEDULES: dict[str, tuple[Triple, ...]] = {
    "quintic5": (QUINTIC,) * 5,
    "polar8": POLAR_EIGHT,
    "pe7": POLAR_EXPRESS,
}
SAFETY = {"pe7": 1.01}
SMALL = 1e-30
# Schedules whose norm is proved to stay below a number: theirs, without the rounding.
SUPREMA = {"quintic5": QUINTIC_SUPREMUM, "pe7": 1.0}


def half_steps(
    Ms: Sequence[Tensor], R: Tensor, msign: Msign, sizes: Tensor, *, form: Form = "auto"
) -> list[Tensor]:
    """size msign(M R) R^T of each stack of momenta M (b, k, r), k of any sizes and one r, with the partners'
    R (sum of b, r, r) and sizes (sum of b, 1, 1).

    M R is scaled so that its entries can be squared: msign does not depend on that.
    """
    norms = frobenius(Ms)
    # A norm of 0 may be that of entries below 1e-23, whose squares are lost; then any number near them will
    # do.
    scales = torch.where(norms > 0, norms, SMALL) * _nonzero(largest_entry(R))
    scaled = (R / scales).split([len(M) for M in Ms])
    Xs = [torch.bmm(M, right) for M, right in zip(Ms, scaled, strict=True)]
    if msign == "svd":
        rights = (R.mT * sizes).split([len(M) for M in Ms])
        return [polar_svd(X) @ right for X, right in zip(Xs, rights, strict=True)]
    safety = SAFETY.get(msign, 1.0)
    return polar_times(Xs, R.mT, SCHEDULES[msign], safety=safety, scale=sizes, form=form)


def tangent_steps(
    A: Tensor,
    B: Tensor,
    M_A: Tensor,
    M_B: Tensor,
    R_A: Tensor,
    R_B: Tensor,
    msign: Msign,
    size: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """(a, b) with a B^T + A b^T = size P_T(msign(D)), D the tangent projection of what M_A = G B, M_B = G^T A
    are of.

    With orthonormal columns A~ = A R_A, B~ = B R_B, and M~_A = M_A R_B, M~_B = M_B R_A:

    1. K = (A~^T M~_A + M~_B^T B~) / 2, where the momenta of a pair need not come from one gradient
    2. Y = M~_A - A~ A~^T M~_A = Q_Y N_Y, Z = M~_B - B~ B~^T M~_B = Q_Z N_Z                 (thin QR)
    3. D = [A~ Q_Y] [[K, N_Z^T], [N_Y, 0]] [B~ Q_Z]^T, and msign(D) has the core C = msign of that (2r x 2r)
    4. a = (A~ C_11 / 2 + Q_Y C_21) R_B^T,   b = (B~ C_11^T / 2 + Q_Z C_12^T) R_A^T
    """
    r = A.shape[-1]
    U, V, M_A, M_B = A @ R_A, B @ R_B, M_A @ R_B, M_B @ R_A
    largest = _nonzero(torch.maximum(largest_entry(M_A), largest_entry(M_B)))
    M_A, M_B = M_A / largest, M_B / largest
    E_A, E_B = U.mT @ M_A, V.mT @ M_B
    K = (E_A + E_B.mT) / 2  # 1
    (Q_Y, N_Y), (Q_Z, N_Z) = torch.linalg.qr(M_A - U @ E_A), torch.linalg.qr(M_B - V @ E_B)  # 2
    zero = K.new_zeros(*K.shape[:-2], N_Y.shape[-2], N_Z.shape[-2])
    core = torch.cat([torch.cat([K, N_Z.mT], dim=-1), torch.cat([N_Y, zero], dim=-1)], dim=-2)  # 3
    C = _msign(core, msign)
    a = U @ (C[..., :r, :r] / 2) + Q_Y @ C[..., r:, :r]  # 4
    b = V @ (C[..., :r, :r].mT / 2) + Q_Z @ C[..., :r, r:].mT
    return a @ (R_B.mT * size), b @ (R_A.mT * size)


def _msign(X: Tensor, msign: Msign) -> Tensor:
    if msign == "svd":
        return polar_svd(X)
    identity = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device).expand(*X.shape[:-2], -1, -1)
    return polar_times([X], identity, SCHEDULES[msign], safety=SAFETY.get(msign, 1.0))[0]


def bounded_length(
    rho: tuple[Tensor, Tensor],
    norms: tuple[Tensor, Tensor],
    lr: Tensor,
    *,
    supremum: float,
    kept: float,
    rank: int,
    eps: float,
) -> Tensor:
    """eta' <= lr per pair, all (pairs,), with which a step changes W by at most lr in the spectral norm, of
    the numbers that are stored.

    rho: rho_A >= ||R_A||_2, rho_B; norms: s_A >= ||A||_2, s_B; supremum c >= ||msign||_2; kept = s of the
    split decay; eps that of the weights' dtype. With dA = -(eta'/2) O R_B^T, dB likewise and ||B R_B|| <= 1

        ||dA B^T + A dB^T + dA dB^T / s^2|| <= c eta' + c^2 eta'^2 rho_A rho_B / (4 s^2)

    Products err by at most 16 eps rho_B s_B of the first term. Storing A_new rounds each entry by e with |e|
    <= eps/2
    |a_new| and |e| <= |its step|, as the old entry is a candidate of the rounding too. So either of two
    lengths is safe, and the longer is taken: what the former leaves of lr (twice as much as needed is taken
    off), and all of lr with ||E_A|| <= sqrt(r) ||dA||, which is short, but never 0.
    """
    (rho_A, rho_B), (s_A, s_B) = rho, norms
    k_A, k_B = rho_A * s_A, rho_B * s_B
    mean = (k_A + k_B) / 2
    rounding = 1.0 + 16.0 * eps * mean
    linear, square = supremum * rounding, (supremum * rounding) ** 2 * rho_A * rho_B / (4.0 * kept * kept)
    reserve = 2.0 * eps * math.sqrt(rank) * (s_A * s_B + lr * (1.0 + 2.0 * mean / kept))
    root = math.sqrt(rank)
    longest = torch.maximum(
        _length(linear, square, (lr - reserve).clamp_min(0.0)),
        _length(linear * (1.0 + root * mean), square * (1.0 + root) ** 2, lr),
    )
    return torch.minimum(longest, lr)


def _length(linear: Tensor, square: Tensor, eta: Tensor) -> Tensor:
    """The root x of square x^2 + linear x = eta, in the form that neither cancels nor overflows."""
    divisor = linear + torch.hypot(linear, 2.0 * (square * eta).sqrt())
    return torch.where(divisor.isfinite(), 2.0 * eta / divisor, 0.0)


def _nonzero(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.ones_like(x))
