"""Which source sequence number g is from: a pure function of the weights and g.

Sources are split off one after the other. With w_0, w_1, ... the weights, source 0 takes the share
s_0 = w_0 / (w_0 + w_1 + ...) of all sequences, source 1 the share s_1 = w_1 / (w_1 + ...) of what is left,
and so on. Source i takes the sequences at which floor(g s_i) grows, so that among the first g it has had
floor(g s_i) of them, exactly: after any number of sequences the count of every source is within its place + 1
of its weight's share. Nothing is drawn, so nothing drifts, and no state is kept.

Shares are integers over 2^32: a weight is kept to 2e-10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BITS = 32


@dataclass(frozen=True)
class Part:
    """A source within a stream: tokens `first` to `first + tokens`."""

    name: str
    first: int
    tokens: int
    weight: float = 1.0


def assign(
    numbers: Sequence[int] | npt.NDArray[np.int64], weights: Sequence[float]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each sequence number its source, and its number among the sequences of that source (both int64)."""
    shares = _shares(weights)
    found = [_place(int(number), shares) for number in numbers]
    sources, within = zip(*found, strict=True) if found else ((), ())
    return np.array(sources, dtype=np.int64), np.array(within, dtype=np.int64)


def _shares(weights: Sequence[float]) -> list[int]:
    """Share of each source in what the sources before it have left, over 2^BITS; the last takes the rest."""
    shares = []
    for i in range(len(weights) - 1):
        share = weights[i] / sum(weights[i:])
        shares.append(min(max(round(share * 2**BITS), 1), 2**BITS - 1))
    return shares


def _place(number: int, shares: Sequence[int]) -> tuple[int, int]:
    for source, share in enumerate(shares):
        before = number * share >> BITS
        if (number + 1) * share >> BITS > before:
            return source, before
        number -= before
    return len(shares), number
