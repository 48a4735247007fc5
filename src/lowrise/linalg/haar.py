"""The change of Haar coefficients that GWT makes, without a transform.

One level takes a (length k) to ceil(k/2) approximations and as many details; an odd k is first padded by one
zero on the right:

    A_i = (a_2i + a_2i+1) / sqrt2,    D_i = (a_2i - a_2i+1) / sqrt2

and the next level transforms A. After l levels there are K = ceil(n / 2^l) approximations (padding level by
level rounds up as often as padding once to a multiple of w = 2^l). The map is orthogonal where nothing is
padded.

GWT gives a detail of any level the factor of the approximation over it, so within a block of w columns all
details have one factor. The details alone are X minus the mean of its block, the approximations alone are
constant on blocks, and the inverse transform of new approximations and scaled details is

    (X - mean of the block) factor + approximation / sqrt(w)

in two passes over X instead of 2 l. Tested against the transform (tests/reference/haar.py). Both functions
take X (..., m, n), are batched over the leading dimensions, leave their input alone and never wait for the
device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def block_sums(X: Tensor, level: int) -> Tensor:
    """Sums of w = 2^level neighbours, (..., m, ceil(n / w)): the approximations times sqrt(w). Pair by pair,
    twice as fast on a CPU as a sum along a short last dimension.
    """
    for _ in range(level):
        pairs = _blocks(X, 2)
        X = pairs[..., 0] + pairs[..., 1]
    return X


def rebuilt(X: Tensor, means: Tensor, constant: Tensor, factor: Tensor, level: int) -> Tensor:
    """(X - mean) factor + constant on the blocks of w columns; means, constant and factor (..., m, K)."""
    new = _blocks(X, 2**level) - means.unsqueeze(-1)  # X constant on blocks has no details at all
    torch.addcmul(constant.unsqueeze(-1), new, factor.unsqueeze(-1), out=new)
    return new.flatten(-2)[..., : X.shape[-1]]


def _blocks(X: Tensor, width: int) -> Tensor:
    """(..., ceil(n / width), width), padded by zeros on the right where n is no multiple of the width."""
    missing = -X.shape[-1] % width
    return (pad(X, (0, missing)) if missing else X).unflatten(-1, (-1, width))
