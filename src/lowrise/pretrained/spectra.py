"""How a weight is split into two factors, and how ranks are shared out among weights.

W is m x n, its input x has the second moment C = E[x x^T] = L L^T (n x n, Cholesky). The error that the model
feels is E ||(W - A B^T) x||^2 = ||(W - A B^T) L||_F^2, and its least value at rank r is reached by the
truncated SVD of W L (Eckart and Young; in the whitened form of Wang et al. 2024, arXiv 2403.07378):

1. W L = U diag(s) V^T                       (m x n)
2. A = U_r diag(s_r)^(1/2)                   (m x r)
3. B^T = diag(s_r)^(1/2) V_r^T L^-1          (r x n)

Without calibration L = I, and the error is that of the weight itself. All in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrise.linalg.solvers import svd

# Of the mean diagonal of C: inputs that the text never used keep a little weight, and C is invertible.
DAMPING = 1e-6


@dataclass(frozen=True)
class Spectrum:
    """One weight, decomposed."""

    weight: Tensor
    """m x n, float32."""
    U: Tensor
    """m x k, k = min(m, n), float64."""
    s: Tensor
    """k singular values of W L, descending."""
    Vh: Tensor
    """k x n, the rows of V^T L^-1."""

    @property
    def profile(self) -> Profile:
        """Shape and singular values."""
        return Profile(self.weight.shape[0], self.weight.shape[1], self.s)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """A (m x r) and B (n x r), float64."""
        root = self.s[:rank].sqrt()
        return self.U[:, :rank] * root, (root[:, None] * self.Vh[:rank]).T

    def error(self, rank: int) -> float:
        """||(W - A B^T) L|| / ||W L||: the relative error of the output, or of the weight if L = I."""
        energy = self.s.square()
        return math.sqrt(float(energy[rank:].sum()) / max(float(energy.sum()), 1e-300))

    def energy_kept(self, rank: int) -> float:
        """1 - ||W - A B^T||^2 / ||W||^2, of the weight itself."""
        A, B = self.factors(rank)
        rest = self.weight.double() - A @ B.T
        return 1.0 - float(rest.square().sum() / self.weight.double().square().sum().clamp_min(1e-300))


def spectrum_of(weight: Tensor, moment: Tensor | None) -> Spectrum:
    """Decompose a weight (m x n), for inputs of second moment `moment` (n x n) or none in particular."""
    wide = weight.detach().double()
    if moment is None:
        U, s, Vh = svd(wide)
        return Spectrum(weight.detach(), U, s, Vh)
    L = cholesky_of(moment)
    U, s, Vh = svd(wide @ L)
    return Spectrum(weight.detach(), U, s, torch.linalg.solve_triangular(L, Vh, upper=False, left=False))


def cholesky_of(moment: Tensor) -> Tensor:
    """L (n x n, lower) with L L^T = C + e I; e is raised tenfold until the factorization exists."""
    C = moment.double()
    scale = float(C.diagonal().mean())
    if scale == 0:
        return torch.eye(len(C), dtype=torch.float64)
    damping = DAMPING
    while True:
        L, failed = torch.linalg.cholesky_ex(C + damping * scale * torch.eye(len(C), dtype=torch.float64))
        if not int(failed):
            return L
        damping *= 10


@dataclass(frozen=True)
class Profile:
    """What the choice of a rank needs to know of a weight."""

    rows: int
    columns: int
    s: Tensor
    """Singular values, descending, float64."""

    @property
    def cost(self) -> int:
        """Elements of the factors per rank: m + n."""
        return self.rows + self.columns

    @property
    def largest_useful(self) -> int:
        """The largest rank at which the factors have fewer elements than the weight; 0: none."""
        return (self.rows * self.columns - 1) // self.cost


def spread_ranks(profiles: Mapping[str, Profile], budget: int) -> dict[str, int]:
    """Ranks of the least summed squared relative error whose factors have at most `budget` elements.

    Every rank is at least 1 and at most the largest useful one. Singular values are taken from all weights in
    the order of what they keep for an element that they cost, s_k^2 / sum(s^2) / (m + n). Within a weight
    they descend, so this is the best choice up to the last ones that no longer fit.
    """
    ranks = dict.fromkeys(profiles, 1)
    left = budget - sum(profile.cost for profile in profiles.values())
    candidates = []
    for name, profile in profiles.items():
        shares = (profile.s.square() / profile.s.square().sum().clamp_min(1e-300)).tolist()
        candidates += [(shares[k] / profile.cost, name) for k in range(1, profile.largest_useful)]
    for _, name in sorted(candidates, key=lambda pair: -pair[0]):
        if profiles[name].cost <= left:
            ranks[name] += 1
            left -= profiles[name].cost
    return ranks
