"""Shares of the energy, the sum of squared singular values: how many hold one, what share a number holds."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# Of the total: a sum of squares that misses the threshold by rounding alone counts as reaching it.
SLACK = 1e-12


def energy_count(s: Tensor, threshold: float) -> int:
    """The least k such that the k largest squares of s (r) sum to `threshold` of all; 0 if all are zero.

    In float64. Waits for the device.
    """
    energy = s.detach().to("cpu", torch.float64).square().sort(descending=True).values
    total = float(energy.sum())
    if total == 0.0:
        return 0
    reached = torch.cumsum(energy, 0) >= threshold * total * (1.0 - SLACK)
    return int(reached.to(torch.int64).argmax()) + 1 if bool(reached.any()) else len(energy)


def energy_rank(count: int, *, rank: int, multiple: int, least: int) -> int:
    """`count` rounded up to a multiple, at least `least` and at most `rank`."""
    return min(rank, max(least, math.ceil(count / multiple) * multiple))


def gaussian_energy(m: int, n: int, r: int) -> float:
    """Share of the energy in the r largest singular values of a large m x n matrix of independent entries.

    With p = min(m, n), q = max(m, n), y = p/q: squared singular values over q have the density
    sqrt((b - x) (x - a)) / (2 pi y x) on [a, b] = (1 -+ sqrt(y))^2 (Marchenko and Pastur 1967), integrated
    here in the angle t, x = 1 + y + 2 sqrt(y) cos(t). Within 2% of a draw from 64 rows on.
    """
    p, q = min(m, n), max(m, n)
    y = p / q
    angles = (np.arange(4096) + 0.5) * (math.pi / 4096)
    values = 1.0 + y + 2.0 * math.sqrt(y) * np.cos(angles)  # descending
    mass = np.cumsum(np.sin(angles) ** 2 / values)
    energy = np.cumsum(np.sin(angles) ** 2)
    return float(np.interp(r / p, mass / mass[-1], energy / energy[-1]))
