"""How the columns of an SVD layer change at a rank event: sorted, cut, added.

W = U diag(s) V^T with orthonormal U and V, so |s| are the exact singular values of W: the energy of W costs
O(r), no decomposition. An event (TSVD dossier, section 2.5):

1. canonical form: s_j < 0 changes its sign together with U_:j; columns sorted by s, descending, ties in their
   old order. W stays as it is.
2. shrink to r' = min(r, max(rank of the energy, (1 - max_drop) r rounded down to the multiple)) by keeping
   the leading columns: the best approximation of rank r' (Eckart and Young),
   ||dW||_F^2 <= (1 - energy) ||W||_F^2. The kept columns are orthonormal as they are.
3. or, where nearly all columns are needed and growth is allowed: d = multiple ceil(r / (8 multiple)) new
   columns, orthonormal and orthogonal to the old, with s = 0. W stays as it is.

What an optimizer keeps per column goes the same way (`lowrise.optim.engine.exchange`): moments of U and s
change sign with their column, new columns begin at zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrise.linalg.energy import energy_count, energy_rank
from lowrise.linalg.orthonormal import complement
from lowrise.linalg.precision import full_precision_matmul

# At an event a layer grows if the energy needs at least this share of its columns.
GROWS_FROM = 0.95


@dataclass(frozen=True)
class RankChange:
    """New columns: those of `order` times `signs` (in U and s), then `added_U`, `added_V` (with s = 0)."""

    order: Tensor
    """(k,) indices of the kept columns."""
    signs: Tensor
    """(k,) +1 or -1."""
    added_U: Tensor
    """m x d."""
    added_V: Tensor
    """n x d."""

    @property
    def rank(self) -> int:
        return len(self.order) + self.added_U.shape[-1]

    def kept(self, X: Tensor, *, signed: bool) -> Tensor:
        """The kept columns of X (..., r)."""
        columns = X[..., self.order]
        return columns * self.signs.to(X.dtype) if signed else columns

    def factors(self, U: Tensor, s: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """U (m x r), s (r), V (n x r) after the change."""
        new_U = torch.cat([self.kept(U, signed=True), self.added_U], dim=-1)
        new_s = torch.cat([self.kept(s, signed=True), s.new_zeros(self.added_U.shape[-1])])
        new_V = torch.cat([self.kept(V, signed=False), self.added_V], dim=-1)
        return new_U, new_s, new_V

    def carried(self, X: Tensor, *, signed: bool) -> Tensor:
        """What belongs to the columns (..., r), after the change: zeros for the new ones."""
        kept = self.kept(X, signed=signed)
        return torch.cat([kept, kept.new_zeros(*kept.shape[:-1], self.added_U.shape[-1])], dim=-1)


def canonical(U: Tensor, s: Tensor, V: Tensor, rank: int | None = None) -> RankChange:
    """Steps 1 and 2: non-negative and descending s, cut to `rank` (None: all)."""
    order = s.abs().argsort(descending=True, stable=True)[:rank]
    signs = torch.where(s[order] < 0, -1.0, 1.0).to(s.dtype)
    return RankChange(order, signs, U.new_empty(len(U), 0), V.new_empty(len(V), 0))


def grown(U: Tensor, s: Tensor, V: Tensor, draws_U: Tensor, draws_V: Tensor) -> RankChange:
    """Step 3, without sorting: new columns from Gaussian draws (m x d) and (n x d)."""
    order = torch.arange(len(s), device=s.device)
    with full_precision_matmul(U.device):
        return RankChange(order, torch.ones_like(s), complement(U, draws_U), complement(V, draws_V))


def shrunken_rank(s: Tensor, energy: float, *, multiple: int, least: int, max_drop: float) -> int:
    """Step 2: the rank after an event. 1e-9: (1 - 0.9) 80 / 8 is 1, not 0.999."""
    rank = len(s)
    needed = energy_rank(energy_count(s, energy), rank=rank, multiple=multiple, least=least)
    floor = math.floor((1.0 - max_drop) * rank / multiple + 1e-9) * multiple
    return min(rank, max(needed, floor))


def grown_rank(s: Tensor, energy: float, *, multiple: int, most: int) -> int:
    """Step 3: the rank after an event of a layer that was not cut."""
    rank = len(s)
    if rank >= most or energy_count(s, energy) < GROWS_FROM * rank:
        return rank
    return min(most, rank + multiple * math.ceil(rank / (8 * multiple)))
