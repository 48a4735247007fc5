"""The balanced gauge of a factored weight.

W = A B^T does not change under A -> A T, B -> B T^-T. Among all such pairs the one with A^T A = B^T B
minimizes ||A||_2 + ||B||_2, and Spectron's step is longest there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowrise.linalg.solvers import power_of_four, svd


def rebalance(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(A', B', T) with A' B'^T = A B^T, A' = A T = U sqrt(S), B' = B T^-T = V sqrt(S), W = U S V^T.

    A (..., m, r), B (..., n, r), T (..., r, r). By QR of both factors, A = Q_A R_A, B = Q_B R_B, and the SVD
    of the r x r core R_A R_B^T = P S Q^T: A' = Q_A P sqrt(S), B' = Q_B Q sqrt(S), T = R_B^T Q / sqrt(S), with
    the signs of `column_signs`. O((m + n) r^2).

    A pair whose product has numerical rank below r (a factor that is still zero, a repeated column) has no
    finite T; it is returned as it came, with T = I. Setting both factors to sqrt(0) would also stop its
    training for ever. Waits for the device (SVD).
    """
    a, b = power_of_four(A), power_of_four(B)  # so that the core of huge or tiny factors is a number
    Q_A, R_A = torch.linalg.qr(A / a)
    Q_B, R_B = torch.linalg.qr(B / b)
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand(*A.shape[:-2], -1, -1)
    if R_A.shape[-2] < A.shape[-1] or R_B.shape[-2] < B.shape[-1]:
        return (
            A.clone(),
            B.clone(),
            identity.clone(),
        )  # fewer rows than columns: the product cannot have rank r
    P, s, Qh = svd(R_A @ R_B.mT)
    eps = torch.finfo(A.dtype).eps
    full_rank = (s[..., -1] > A.shape[-1] * eps * s[..., 0])[..., None, None]
    root = (
        torch.where(full_rank.squeeze(-1), s.clamp_min(0), torch.ones_like(s)).sqrt().unsqueeze(-2)
    )  # (..., 1, r)
    T = (R_B.mT @ Qh.mT) / root * (b.sqrt() / a.sqrt())
    root = root * (a.sqrt() * b.sqrt())
    balanced_A = (Q_A @ P) * root
    balanced_B = (Q_B @ Qh.mT) * root
    signs = column_signs(T)
    balanced_A, balanced_B, T = balanced_A * signs, balanced_B * signs, T * signs
    return (
        torch.where(full_rank, balanced_A, A),
        torch.where(full_rank, balanced_B, B),
        torch.where(full_rank, T, identity),
    )


def column_signs(T: Tensor) -> Tensor:
    """The signs (..., 1, r), 1 or -1, that make the entry of largest magnitude of each column positive.

    Singular vectors have arbitrary signs, and LAPACK changes its choice with the last bit of its input:
    without a rule of our own, gradients that are equal to rounding would not give factors that are.
    """
    largest = T.abs().argmax(dim=-2, keepdim=True)
    return torch.where(T.gather(-2, largest) < 0, -1.0, 1.0).to(T.dtype)
