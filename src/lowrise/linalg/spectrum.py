"""What a list of singular values says of a matrix; Python's floats, so that nothing is rounded twice."""

from __future__ import annotations

import math
from collections.abc import Sequence


def stable_rank(values: Sequence[float]) -> float:
    """sum s_i^2 / s_1^2 of descending singular values; 0 for a zero matrix."""
    largest = values[0]
    return 0.0 if largest == 0 else sum((v / largest) ** 2 for v in values)


def effective_rank(values: Sequence[float]) -> float:
    """exp(entropy of s_i / sum s) (Roy & Vetterli 2007); 0 for a zero matrix."""
    total = sum(values)
    if values[0] == 0:
        return 0.0
    shares = [v / total for v in values]
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))
