"""One method against another: the share of the reference's FLOPs that reaches the same loss.

1. Frontier of a method: log of the loss at its isoFLOP minima as a polynomial in log C, of degree 2 (1 with
   two budgets), by least squares.
2. Losses between the largest of both lowest and the smallest of both highest minima are reached by both. At
   each of `LEVELS` of them, evenly in the log, m = C_method / C_reference at that loss.
3. The multiplier is the geometric mean of m over them; m at both ends shows whether it stays.

The interval repeats 1 to 3 with the drawn minima of both methods (`isoflop`), at the same losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowrise.scaling.isoflop import Draws, Interval, exponential, interval

LEVELS = 9
_GRID = 257
_BEYOND = 0.5  # of its range in log C, that a drawn frontier is followed beyond its ends


@dataclass(frozen=True)
class Multiplier:
    """`method` needs `times` of the FLOPs of `reference` for one loss; None for all where they share none."""

    method: str
    reference: str
    times: Interval | None
    at_small: Interval | None = None
    """At the highest loss that both reach, which is that of the smallest compute."""
    at_large: Interval | None = None
    """At the lowest."""
    losses: tuple[float, float] | None = None
    """Highest and lowest loss that both reach."""
    flops: tuple[float, float] | None = None
    """Of the reference at these."""
    why_none: str = ""

    @property
    def changes(self) -> bool:
        """Whether the intervals at both ends have nothing in common: one number is then none for all."""
        small, large = self.at_small, self.at_large
        return small is not None and large is not None and (small.low > large.high or large.low > small.high)


def multiplier(method: str, own: Draws, reference: str, other: Draws, *, level: float) -> Multiplier:
    """Compare two methods by the minima of their budgets."""
    if min(len(own.flops), len(other.flops)) < 2:
        return Multiplier(method, reference, None, why_none="one of them has fewer than two minima")
    high = min(float(own.loss.max()), float(other.loss.max()))
    low = max(float(own.loss.min()), float(other.loss.min()))
    if low >= high:
        worse = method if own.loss.min() >= other.loss.max() else reference
        better = reference if worse == method else method
        why = f"{worse} reaches at no budget the loss that {better} has at its smallest"
        return Multiplier(method, reference, None, why_none=why)
    levels = np.linspace(np.log(high), np.log(low), LEVELS)
    at_other = log_flops_at(other.flops, other.loss[None], levels)
    estimate = (log_flops_at(own.flops, own.loss[None], levels) - at_other)[0]
    if np.isnan(estimate).any():
        return Multiplier(method, reference, None, why_none="the loss of one of them does not fall steadily")
    count = min(len(own.drawn_loss), len(other.drawn_loss))
    drawn = log_flops_at(own.flops, own.drawn_loss[:count], levels) - log_flops_at(
        other.flops, other.drawn_loss[:count], levels
    )
    columns = (
        (estimate.mean(), drawn.mean(axis=1)), (estimate[0], drawn[:, 0]), (estimate[-1], drawn[:, -1])
    )  # fmt: skip
    times, small, large = (
        exponential(Interval(float(value), *interval(draws, level))) for value, draws in columns
    )
    ends = np.exp(at_other[0, [0, -1]])
    return Multiplier(method, reference, times, small, large, (high, low), (float(ends[0]), float(ends[1])))


def log_flops_at(flops: np.ndarray, losses: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """log C at which the frontier through minima (draws, budgets) falls to log losses (levels).

    (draws, levels); NaN where a minimum is missing, or the frontier does not reach the loss within half its
    range beyond the budgets.
    """
    x = np.log(flops)
    middle, half = (x[0] + x[-1]) / 2, (x[-1] - x[0]) / 2
    degree = min(2, len(x) - 1)
    place = (x - middle) / half
    # A drawn minimum of a nearly straight parabola may lie below zero: no loss, as none at all.
    log_losses = np.log(np.where(losses > 0, losses, np.nan))
    coefficients = log_losses @ np.linalg.pinv(np.vander(place, degree + 1)).T
    grid = np.linspace(-1 - 2 * _BEYOND, 1 + 2 * _BEYOND, _GRID)
    curves = coefficients @ np.vander(grid, degree + 1).T  # (draws, grid)
    # The branch that falls: from the left, what is not below all before it is past the turn.
    found = np.full((len(losses), len(levels)), np.nan)
    for row, curve in zip(found, curves, strict=True):
        if np.isnan(curve).any():
            continue
        start, end = int(np.argmax(curve)), int(np.argmin(curve))
        if start >= end:
            continue
        part = slice(start, end + 1)
        row[:] = np.interp(-levels, -curve[part], grid[part], left=np.nan, right=np.nan)
    return middle + half * found
