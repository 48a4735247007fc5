"""What may be said about a difference of mean losses: intervals, correction, power.

Welch's interval takes the two groups of seeds as independent. The paired one takes the differences seed by
seed: both runs of a seed read the same batches in the same order, so what they have in common drops out; it
pays with degrees of freedom, and with three seeds and little in common it is the wider one. Which of them
decides is said before (`--test`), never afterwards.

Sources: B. L. Welch, Biometrika 34 (1947), degrees of freedom by Welch and Satterthwaite; S. Holm,
Scandinavian Journal of Statistics 6 (1979); power from the noncentral t
distribution.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from lowrise.files import is_known

CONFIDENCE = 0.95
POWER = 0.8


@dataclass(frozen=True)
class Statistic:
    """`n` values, their mean, and their sample standard deviation (None below two values)."""

    values: tuple[float, ...]
    mean: float | None
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[object]) -> Statistic:
        known = tuple(float(value) for value in values if is_known(value))
        return cls(
            known,
            statistics.fmean(known) if known else None,
            statistics.stdev(known) if len(known) > 1 else None,
        )

    @property
    def n(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Interval:
    """A difference of means with its 95% interval and the two-sided p value of "no difference"."""

    mean: float
    low: float
    high: float
    p: float


def welch(a: Statistic, b: Statistic) -> Interval:
    """a - b by Welch's t test. Needs two values on either side."""
    if a.mean is None or b.mean is None or a.sd is None or b.sd is None:
        raise ValueError(f"Welch's interval needs two values on either side, not {a.n} and {b.n}.")
    variance, freedom = _welch_error(a.sd, a.n, b.sd, b.n)
    return _interval(a.mean - b.mean, math.sqrt(variance), freedom)


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Interval:
    """a - b from the differences of the seeds that both have. Needs two of them."""
    differences = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    if len(differences) < 2:
        raise ValueError(f"A paired interval needs two common seeds, not {len(differences)}.")
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return _interval(statistics.fmean(differences), error, len(differences) - 1)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p values corrected by Holm's step-down rule. What has none (undecided for another reason) counts
    as a comparison all the same, since it was planned as one.
    """
    order = sorted(range(len(p_values)), key=lambda i: math.inf if (p := p_values[i]) is None else p)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        p = p_values[i]
        if p is None:
            break
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        corrected[i] = largest
    return corrected


def detectable(sd: float, n: int, *, comparisons: int = 1, is_paired: bool = False) -> float:
    """The true difference that is called one with probability 0.8, where each side has `n` seeds.

    `sd` is that of a run's loss, the same on both sides; with `is_paired` that of the differences.
    `comparisons`: under Holm's rule the first step, the strictest (0.05 / comparisons).
    """
    from scipy import optimize

    freedom = n - 1 if is_paired else 2 * (n - 1)
    error = sd * math.sqrt((1 if is_paired else 2) / n)
    limit = critical(freedom, comparisons)
    shift = optimize.brentq(lambda shift: power(shift, freedom, limit) - POWER, 0.0, 20 * (limit + 5))
    return float(shift) * error


def critical(freedom: int, comparisons: int = 1) -> float:
    """The |t| from which a two-sided test at 0.05 / comparisons sees a difference."""
    from scipy import stats

    return float(stats.t.isf((1 - CONFIDENCE) / 2 / comparisons, freedom))


def power(shift: float, freedom: int, limit: float) -> float:
    """Probability that |t| exceeds `limit` where the true difference is `shift` standard errors.

    The tails of the noncentral t distribution as the mean over the estimated standard error s (s^2 is
    chi-squared / freedom) of the normal tails beyond `limit` s: scipy's own tails are NaN for large shifts.
    """
    from scipy.special import ndtr

    errors, weights = _estimated_errors(freedom)
    beyond = ndtr(shift - limit * errors) + ndtr(-shift - limit * errors)
    return float(weights @ beyond)


@cache
def _estimated_errors(freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of an estimated standard error whose true value is 1, and their weights in a mean."""
    from scipy.stats import chi2

    nodes, weights = np.polynomial.legendre.leggauss(200)
    return np.sqrt(chi2.ppf((nodes + 1) / 2, freedom) / freedom), weights / 2


def seeds_needed(
    difference: float, sd: float, *, comparisons: int = 1, is_paired: bool = False
) -> int | None:
    """The smallest number of seeds (3 to 100) with which `difference` is seen 8 times in 10; None beyond."""
    for n in range(3, 101):
        if detectable(sd, n, comparisons=comparisons, is_paired=is_paired) <= abs(difference):
            return n
    return None


def sd_interval(sd: float, freedom: int) -> tuple[float, float]:
    """The 95% interval of a standard deviation that was estimated with so many degrees of freedom."""
    from scipy import stats

    tail = (1 - CONFIDENCE) / 2
    low, high = stats.chi2.ppf(1 - tail, freedom), stats.chi2.ppf(tail, freedom)
    return sd * math.sqrt(freedom / low), sd * math.sqrt(freedom / high)


def pooled_sd(groups: Sequence[Statistic]) -> tuple[float, int] | None:
    """The common standard deviation of several recipes' seeds, and its degrees of freedom; None without
    any."""
    found = [(group.sd, group.n - 1) for group in groups if group.sd is not None]
    freedom = sum(n for _, n in found)
    return (math.sqrt(sum(n * sd**2 for sd, n in found) / freedom), freedom) if freedom else None


def _welch_error(sd_a: float, n_a: int, sd_b: float, n_b: int) -> tuple[float, float]:
    """(variance of the difference, degrees of freedom)."""
    va, vb = sd_a**2 / n_a, sd_b**2 / n_b
    if va + vb == 0:
        return 0.0, math.inf
    return va + vb, (va + vb) ** 2 / (va**2 / (n_a - 1) + vb**2 / (n_b - 1))


def _interval(mean: float, error: float, freedom: float) -> Interval:
    from scipy import stats

    if error == 0:
        return Interval(mean, mean, mean, 0.0 if mean else 1.0)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return Interval(mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, freedom)))
