"""The Haar transform along the last dimension as GWT's paper has it, level by level; the form without a
transform (`linalg/haar.py`) is tested against it. All functions take X (..., m, n).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def haar(X: Tensor, level: int) -> tuple[Tensor, list[Tensor]]:
    """Approximations A (..., m, ceil(n / 2^level)) and details [D_level, ..., D_1], the coarsest first."""
    details: list[Tensor] = []
    A = X
    for _ in range(level):
        even = pad(A, (0, A.shape[-1] % 2)).unflatten(-1, (-1, 2))
        A, D = even[..., 0] + even[..., 1], even[..., 0] - even[..., 1]
        A, D = A * 0.5**0.5, D * 0.5**0.5
        details.insert(0, D)
    return A, details


def inverse_haar(A: Tensor, details: list[Tensor], columns: int) -> Tensor:
    """X (..., m, columns) from its coefficients; what padding added is cut off, level by level."""
    lengths = [D.shape[-1] for D in details[1:]] + [columns]
    X = A
    for D, length in zip(details, lengths, strict=True) if details else ():
        # The next finer level has as many approximations as details; the last one has the columns.
        X = torch.stack([X + D, X - D], dim=-1).flatten(-2)[..., :length] * 0.5**0.5
    return X


def replace_coefficients(X: Tensor, approximation: Tensor, factor: Tensor, level: int) -> Tensor:
    """Transform, take the new approximations (..., m, K) and the details times `factor` (..., m, K), repeated
    twice for each finer level, and go back.
    """
    _, details = haar(X, level)
    scaled: list[Tensor] = []
    for D in details:
        scaled.append(D * factor[..., : D.shape[-1]])
        factor = factor.repeat_interleave(2, dim=-1)
    return inverse_haar(approximation, scaled, X.shape[-1])
