"""The Haar transform along the last dimension, and the change of its coefficients that GWT makes.

One level takes a (length k) to ceil(k/2) approximations and as many details; an odd k is first padded by one
zero on the right:

    A_i = (a_2i + a_2i+1) / sqrt2,    D_i = (a_2i - a_2i+1) / sqrt2

and the next level transforms A. After l levels there are K = ceil(n / 2^l) approximations (padding level by
level rounds up as often as padding once to a multiple of w = 2^l). The map is orthogonal where nothing is
padded. All functions take X (..., m, n), are batched over the leading dimensions, leave their input alone and
never wait for the device.
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
        pairs = _blocks(A, 2)
        A, D = pairs[..., 0] + pairs[..., 1], pairs[..., 0] - pairs[..., 1]
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


def haar_approximation(X: Tensor, level: int) -> Tensor:
    """The approximations alone, (..., m, ceil(n / w)): sums of w = 2^level neighbours, over sqrt(w)."""
    return block_sums(X, level) * 2.0 ** (-level / 2)


def block_sums(X: Tensor, level: int) -> Tensor:
    """Sums of w = 2^level neighbours, (..., m, ceil(n / w)): pair by pair, twice as fast on a CPU as a sum
    along a short last dimension.
    """
    for _ in range(level):
        pairs = _blocks(X, 2)
        X = pairs[..., 0] + pairs[..., 1]
    return X


def replace_coefficients(X: Tensor, approximation: Tensor, factor: Tensor, level: int) -> Tensor:
    """The inverse transform of the new approximations and of X's details times `factor`; (..., m, n).

    `approximation` and `factor` are (..., m, K); a detail of any level has the factor of the approximation
    over it. So within a block of w = 2^level columns all details have one factor, and no transform is needed:
    the details alone are X minus the mean of its block, the approximations alone are constant on blocks:

        (X - mean of the block) factor + approximation / sqrt(w)

    Equal to `replace_coefficients_reference` up to rounding, in two passes over X instead of 2 level.
    """
    means = block_sums(X, level) * 2.0**-level
    return rebuilt(X, means, approximation * 2.0 ** (-level / 2), factor, level)


def rebuilt(X: Tensor, means: Tensor, constant: Tensor, factor: Tensor, level: int) -> Tensor:
    """(X - mean) factor + constant on the blocks of w columns; means, constant and factor (..., m, K)."""
    new = _blocks(X, 2**level) - means.unsqueeze(-1)  # X constant on blocks has no details at all
    torch.addcmul(constant.unsqueeze(-1), new, factor.unsqueeze(-1), out=new)
    return new.flatten(-2)[..., : X.shape[-1]]


def replace_coefficients_reference(X: Tensor, approximation: Tensor, factor: Tensor, level: int) -> Tensor:
    """As published: transform, multiply the details (the factor repeated twice for each finer level), go
    back.
    """
    _, details = haar(X, level)
    scaled: list[Tensor] = []
    for D in details:
        scaled.append(D * factor[..., : D.shape[-1]])
        factor = factor.repeat_interleave(2, dim=-1)
    return inverse_haar(approximation, scaled, X.shape[-1])


def _blocks(X: Tensor, width: int) -> Tensor:
    """(..., ceil(n / width), width), padded by zeros on the right where n is no multiple of the width."""
    missing = -X.shape[-1] % width
    return (pad(X, (0, missing)) if missing else X).unflatten(-1, (-1, width))
