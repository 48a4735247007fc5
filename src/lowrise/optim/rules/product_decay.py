"""Decay of the Frobenius norm of a product A B^T, decoupled from the gradient (after Khodak et al., arXiv
2105.01029).

The gradient of (1/2) ||A B^T||_F^2 is A (B^T B) by A and B (A^T A) by B. With rate = lr wd, both from old
values:

    A <- A - rate A (B^T B),   B <- B - rate B (A^T A)

Of balanced factors each singular value s of W falls by 2 rate s^2 to first order, the strong ones fastest. It
depends on the split into A and B, as plain decay does. Stable for rate max(||A^T A||_2, ||B^T B||_2) <= 1; a
larger rate is cut to that, with Frobenius norms in the place of the spectral ones, which are no smaller and
cost nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor


def product_decay_rate(S_A: Tensor, S_B: Tensor, rate: float) -> Tensor:
    """The rate per pair, (b, 1, 1), from the Gram matrices (b, r, r)."""
    norms = [torch.linalg.vector_norm(S, dim=(-2, -1), keepdim=True) for S in (S_A, S_B)]
    return (1.0 / torch.maximum(*norms)).clamp_max(rate)


def product_decay_terms(A: Tensor, B: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """What is to be subtracted from A (b, m, r) and B (b, n, r)."""
    S_A, S_B = A.mT @ A, B.mT @ B
    cut = product_decay_rate(S_A, S_B, rate)
    return A @ (S_B * cut), B @ (S_A * cut)
