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
from bisect import bisect_left
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
    """A difference of means, its interval (95% unless said), and the two-sided p value of "no difference"."""

    mean: float
    low: float
    high: float
    p: float


def welch(a: Statistic, b: Statistic, confidence: float = CONFIDENCE) -> Interval:
    """a - b by Welch's t test. Needs two values on either side."""
    if a.mean is None or b.mean is None or a.sd is None or b.sd is None:
        raise ValueError(f"Welch's interval needs two values on either side, not {a.n} and {b.n}.")
    variance, freedom = _welch_error(a.sd, a.n, b.sd, b.n)
    return _interval(a.mean - b.mean, math.sqrt(variance), freedom, confidence)


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

    test = _Test.of(n, comparisons, is_paired)
    error = sd * math.sqrt((1 if is_paired else 2) / n)
    highest = 20 * (float(test.limits.max()) + 5)
    return error * float(optimize.brentq(lambda shift: test.power(shift) - POWER, 0.0, highest))


def seeds_needed(
    difference: float, sd: float, *, comparisons: int = 1, is_paired: bool = False
) -> int | None:
    """The smallest number of seeds (3 to 100) with which `difference` is seen 8 times in 10; None beyond."""

    def sees(n: int) -> bool:
        return detectable(sd, n, comparisons=comparisons, is_paired=is_paired) <= abs(difference)

    found = 3 + bisect_left(range(3, 101), True, key=sees)
    return found if found <= 100 else None


@dataclass(frozen=True)
class _Test:
    """A two-sided t test of which power is asked: degrees of freedom of its standard error, and the values of
    |t| from which it sees a difference, each with its probability.

    Welch's test has no single one: its degrees of freedom are estimated too. With equal true spreads and n
    seeds a side they are (n - 1) / (B^2 + (1 - B)^2), where B, the share of the first side in the sum of
    both variances, is Beta((n - 1) / 2, (n - 1) / 2) and independent of that sum. The pooled t test would
    promise 8 times in 10 where Welch's sees 7, at three seeds.
    """

    freedom: int
    limits: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, n: int, comparisons: int = 1, is_paired: bool = False) -> _Test:
        from scipy import stats

        tail = (1 - CONFIDENCE) / 2 / comparisons
        if is_paired:
            return cls(n - 1, np.array([stats.t.isf(tail, n - 1)]), np.ones(1))
        nodes, weights = _nodes(32)
        share = stats.beta.ppf(nodes, (n - 1) / 2, (n - 1) / 2)
        freedom = (n - 1) / (share**2 + (1 - share) ** 2)
        return cls(2 * (n - 1), stats.t.isf(tail, freedom), weights)

    def power(self, shift: float) -> float:
        """Probability to see a true difference of `shift` standard errors.

        The tails of the noncentral t distribution as the mean over the estimated standard error s (s^2 is
        chi-squared / freedom) of the normal tails beyond limit x s: scipy's own are NaN for large shifts.
        """
        from scipy.special import ndtr
        from scipy.stats import chi2

        nodes, weights = _nodes(200)
        errors = np.sqrt(chi2.ppf(nodes, self.freedom) / self.freedom)
        bounds = np.outer(errors, self.limits)
        beyond = ndtr(shift - bounds) + ndtr(-shift - bounds)
        return float(weights @ beyond @ self.weights)


@cache
def _nodes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in (0, 1) and weights of a Gauss-Legendre mean."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, weights / 2


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


def _interval(mean: float, error: float, freedom: float, confidence: float = CONFIDENCE) -> Interval:
    from scipy import stats

    if error == 0:
        return Interval(mean, mean, mean, 0.0 if mean else 1.0)
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    return Interval(mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, freedom)))
