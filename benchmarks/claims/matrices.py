"""Norms and draws of float64 matrices that several claims need."""

from __future__ import annotations

import torch
from torch import Tensor


def spectral(W: Tensor) -> float:
    """||W||_2."""
    return float(torch.linalg.matrix_norm(W, ord=2))


def frobenius(W: Tensor) -> float:
    """||W||_F."""
    return float(torch.linalg.matrix_norm(W))


def cosine(X: Tensor, Y: Tensor) -> float:
    """Of the angle between X and Y as vectors."""
    return float((X * Y).sum()) / (frobenius(X) * frobenius(Y))


def orthonormal(k: int, r: int, generator: torch.Generator) -> Tensor:
    """k x r with orthonormal columns, drawn."""
    return torch.linalg.qr(torch.randn(k, r, generator=generator, dtype=torch.float64)).Q
