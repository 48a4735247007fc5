"""Intervals, correction and power against scipy, against arithmetic, and by simulation with known truth.

Simulated shares have standard errors of sqrt(p (1 - p) / draws): 0.0049 at 95% and 2,000 draws, 0.0089 at
80%. The bars are four of them.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lowrise.compare.statistics import (
    Statistic,
    _Test,
    detectable,
    holm,
    paired,
    pooled_sd,
    sd_interval,
    seeds_needed,
    welch,
)

DRAWS = 2000


def test_welch_is_scipys() -> None:
    a, b = [3.1, 3.2, 3.15], [3.0, 3.4, 3.3, 3.35]
    reference = stats.ttest_ind(a, b, equal_var=False)
    low, high = reference.confidence_interval(0.95)
    found = welch(Statistic.of(a), Statistic.of(b))
    # The same formula in float64.
    assert (found.low, found.high, found.p) == pytest.approx((low, high, reference.pvalue), rel=1e-9)


def test_paired_is_scipys_over_the_common_seeds() -> None:
    a, b = {0: 3.1, 1: 3.2, 2: 3.15, 7: 9.0}, {0: 3.0, 1: 3.3, 2: 3.05, 9: 1.0}
    reference = stats.ttest_rel([3.1, 3.2, 3.15], [3.0, 3.3, 3.05])
    low, high = reference.confidence_interval(0.95)
    found = paired(a, b)
    assert (found.low, found.high, found.p) == pytest.approx((low, high, reference.pvalue), rel=1e-9)


def test_equal_values_are_no_difference_and_equal_differences_are_one() -> None:
    same = Statistic.of([3.0, 3.0])
    assert welch(same, same).p == 1.0
    assert paired({0: 3.0, 1: 4.0}, {0: 2.5, 1: 3.5}).p == 0.0


def test_too_few_values_are_an_error() -> None:
    with pytest.raises(ValueError, match="two values"):
        welch(Statistic.of([1.0]), Statistic.of([1.0, 2.0]))
    with pytest.raises(ValueError, match="two common seeds"):
        paired({0: 1.0, 1: 2.0}, {1: 1.0, 2: 2.0})


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.9: times 4, 3, 2, 1, and never falling.
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.01, None]) == [0.02, None], "what is undecided was planned as a comparison"
    assert holm([0.7, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("freedom", [1, 2, 4, 8, 30])
@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0, 6.0])
def test_power_of_pairs_is_that_of_the_noncentral_t(freedom: int, shift: float) -> None:
    test = _Test.of(freedom + 1, is_paired=True)
    (limit,) = test.limits
    reference = stats.nct.sf(limit, freedom, shift) + stats.nct.cdf(-limit, freedom, shift)
    assert test.power(shift) == pytest.approx(reference, abs=1e-5)  # of the quadrature


def test_without_a_difference_the_power_is_the_level() -> None:
    assert _Test.of(5, is_paired=True).power(0.0) == pytest.approx(0.05, abs=1e-5)
    assert _Test.of(5, 5, is_paired=True).power(0.0) == pytest.approx(0.01, abs=1e-5)
    # Welch's test keeps below its level where spreads are equal, at three seeds most.
    assert 0.03 < _Test.of(3).power(0.0) < _Test.of(20).power(0.0) < 0.05


def draws(
    n: int, sd_a: float, sd_b: float, *, shared: float = 0.0, mean: float = 0.0
) -> tuple[np.ndarray, ...]:
    """DRAWS comparisons of n seeds a side; `shared` is the standard deviation of what both of a seed have."""
    generator = np.random.default_rng(7)
    common = shared * generator.standard_normal((DRAWS, n))
    a = mean + common + sd_a * generator.standard_normal((DRAWS, n))
    return a, common + sd_b * generator.standard_normal((DRAWS, n))


def intervals(a: np.ndarray, b: np.ndarray, is_paired: bool) -> list:
    if is_paired:
        return [paired(dict(enumerate(x)), dict(enumerate(y))) for x, y in zip(a, b, strict=True)]
    return [welch(Statistic.of(x.tolist()), Statistic.of(y.tolist())) for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize(
    ("n", "sd_a", "sd_b", "is_paired", "low", "high"),
    [
        (3, 0.01, 0.01, False, 0.945, 0.985),  # Welch is on the safe side with few and equal spreads
        (5, 0.01, 0.01, False, 0.930, 0.975),
        (10, 0.01, 0.03, False, 0.930, 0.970),
        (3, 0.01, 0.01, True, 0.930, 0.970),
        (5, 0.01, 0.03, True, 0.930, 0.970),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(
    n: int, sd_a: float, sd_b: float, is_paired: bool, low: float, high: float
) -> None:
    a, b = draws(n, sd_a, sd_b, shared=0.02, mean=0.5)
    found = intervals(a, b, is_paired)
    covered = np.mean([one.low <= 0.5 <= one.high for one in found])
    if not is_paired:  # what seeds share makes Welch's interval too wide, never too narrow
        assert covered >= low
        a, b = draws(n, sd_a, sd_b, mean=0.5)
        covered = np.mean([one.low <= 0.5 <= one.high for one in intervals(a, b, False)])
    assert low <= covered <= high


def test_pairs_see_more_where_seeds_share_much_and_less_where_nothing() -> None:
    for shared, pairs_win in ((0.05, True), (0.0, False)):
        a, b = draws(4, 0.01, 0.01, shared=shared, mean=0.03)
        seen = {p: np.mean([one.p < 0.05 for one in intervals(a, b, p)]) for p in (True, False)}
        assert (seen[True] > seen[False]) == pairs_win


@pytest.mark.parametrize(("n", "is_paired"), [(3, False), (5, False), (3, True), (8, True)])
def test_the_detectable_difference_is_seen_eight_times_in_ten(n: int, is_paired: bool) -> None:
    sd = 0.01
    truth = detectable(sd * (math.sqrt(2) if is_paired else 1), n, is_paired=is_paired)
    a, b = draws(n, sd, sd, mean=truth)
    seen = np.mean([one.p < 0.05 for one in intervals(a, b, is_paired)])
    assert seen == pytest.approx(0.8, abs=0.036)  # four standard errors of the simulation


def test_holm_keeps_the_chance_of_any_false_claim_below_the_level() -> None:
    generator = np.random.default_rng(3)
    plain = corrected = 0
    for _ in range(1500):
        first = Statistic.of(generator.standard_normal(3).tolist())
        p = [welch(Statistic.of(generator.standard_normal(3).tolist()), first).p for _ in range(5)]
        plain += min(p) < 0.05
        corrected += any(q is not None and q < 0.05 for q in holm(p))
    assert plain / 1500 > 0.08
    assert corrected / 1500 < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 1500)


def test_seeds_needed_are_the_first_that_see_it() -> None:
    n = seeds_needed(0.02, 0.01)
    assert n is not None
    assert detectable(0.01, n) <= 0.02 < detectable(0.01, n - 1)
    assert seeds_needed(1e-6, 0.01) is None


def test_the_spread_of_a_spread() -> None:
    low, high = sd_interval(0.01, 4)
    generator = np.random.default_rng(5)
    sds = generator.standard_normal((DRAWS, 5)).std(axis=1, ddof=1)
    covered = np.mean((sds * low / 0.01 <= 1) & (sds * high / 0.01 >= 1))
    assert 0.930 <= covered <= 0.970
    assert pooled_sd([Statistic.of([1.0, 3.0]), Statistic.of([1.0, 1.0]), Statistic.of([7.0])]) == (1.0, 2)
