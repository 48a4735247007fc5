"""Products that are symmetric by their form, of which a CPU multiplies one triangle.

X^T X, S S and Q^T S Q with a symmetric S. Of 4 x 4 blocks those on and below the diagonal are 5/8 of the
FLOPs; what lies above is copied. A device that multiplies a batch in one launch would launch each row of
blocks by itself, and bfloat16 products on a CPU are too fast for blocks, so both take the whole product.

Not for products of different polynomials of one matrix (Q P in the Gram form, Y T in whitening), symmetric as
they are in exact arithmetic: rounding makes them not so, and the mirror takes away the very error that keeps
an iteration in step with itself. At a condition of 100 whitening then ends 1.3 away from the polar factor
instead of 6e-4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Of the time of the whole product, float32, one thread (benchmarks/symmetric.py): S S of k = 128 0.91, 192
# 0.77, 512 0.73, 1024 0.70; X^T X of k = 128 with 4 k rows 0.78. In a step the 0.91 is lost to the copies.
LEAST, LEAST_OF_SQUARES, ROWS = 128, 192, 4


def symmetric_products(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The products of stacks (b, k, m) and (b, m, k), any m and one k, that are symmetric by their form, one
    after the other: (sum of b, k, k).
    """
    (A, B), *others = pairs
    if not others and rows_of_blocks(A) == 1:
        return torch.bmm(A, B)
    counts = [len(A) for A, _ in pairs]
    k = A.shape[-2]
    C = A.new_empty(sum(counts), k, k)
    for (A, B), own in zip(pairs, C.split(counts), strict=True):
        if rows_of_blocks(A) == 1:
            torch.bmm(A, B, out=own)
            continue
        for rows in _rows(A):
            torch.bmm(A[:, rows], B[..., : rows.stop], out=own[:, rows, : rows.stop])
            _mirror(own, rows)
    return C


def symmetric_baddbmm(S: Tensor, A: Tensor, B: Tensor, *, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    """beta S + alpha A B, symmetric by its form; all (b, k, k). With beta = 0 S is not looked at."""
    if rows_of_blocks(A) == 1:
        return torch.baddbmm(S, A, B, beta=beta, alpha=alpha)
    C = torch.empty_like(A)
    for rows in _rows(A):
        of, own = (S[:, rows, : rows.stop], A[:, rows], B[..., : rows.stop]), C[:, rows, : rows.stop]
        torch.baddbmm(*of, beta=beta, alpha=alpha, out=own)
        _mirror(C, rows)
    return C


def rows_of_blocks(A: Tensor) -> int:
    """Into how many rows of blocks a product A B of A (b, k, m) is cut; 1: it is multiplied whole."""
    k, m = A.shape[-2:]
    pays = k >= LEAST_OF_SQUARES or (k >= LEAST and m >= 4 * k)
    return ROWS if pays and A.device.type == "cpu" and A.dtype in (torch.float32, torch.float64) else 1


def _rows(A: Tensor) -> list[slice]:
    k, parts = A.shape[-2], rows_of_blocks(A)
    return [slice(k * i // parts, k * (i + 1) // parts) for i in range(parts)]


def _mirror(C: Tensor, rows: slice) -> None:
    """Copy what lies left of the diagonal block of `rows` above it."""
    if rows.start:
        C[:, : rows.start, rows] = C[:, rows, : rows.start].mT
