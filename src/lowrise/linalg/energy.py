"""How many singular values hold a given share of the energy, the sum of their squares."""

from __future__ import annotations

import math

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
