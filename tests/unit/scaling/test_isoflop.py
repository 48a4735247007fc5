"""Parabolas, powers and their intervals, on points whose constants are known."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_scaling import BUDGETS, Law, points_of

from lowrise.scaling.isoflop import fit_isoflop, interval
from lowrise.scaling.points import Points


def parabolas(rng: np.random.Generator, sizes: int, noise: float, exponent: float = 0.479) -> Points:
    """Exact parabolas in log N around N* = C^exponent, with C = 6 N D, and noise."""
    rows = []
    for budget in BUDGETS:
        best = 0.3 * budget**exponent
        for params in np.geomspace(best / 4, best * 4, sizes):
            loss = 3.0 - 0.1 * np.log(budget / 1e18) + 0.05 * np.log(params / best) ** 2
            rows.append((budget, params, budget / 6 / params, loss + noise * rng.standard_normal(), budget))
    return Points("one", *np.array(rows).T)


def test_exact_parabolas_give_their_constants_back() -> None:
    fit = fit_isoflop(parabolas(np.random.default_rng(0), 5, 0.0), level=0.9, draws=100, seed=0)
    assert fit.params is not None
    assert fit.tokens is not None
    assert fit.params.exponent.value == pytest.approx(0.479, abs=1e-9)
    assert fit.tokens.exponent.value == pytest.approx(0.521, abs=1e-9)
    assert fit.params.at(np.array([1e21])) == pytest.approx(0.3 * 1e21**0.479, rel=1e-6)
    first = fit.parabolas[0]
    assert first.loss.value == pytest.approx(3.0)
    assert first.params.value == pytest.approx(0.3 * 1e18**0.479)
    assert first.params.value * first.tokens.value == pytest.approx(1e18 / 6)
    assert first.coefficients[2] == pytest.approx(0.05)
    assert all(p.inside for p in fit.parabolas)


def covered(kind: str, sizes: int, noise: float, draws: int) -> float:
    """Share of draws of a study whose 90% interval of the exponent of N_opt holds the true one."""
    law, hits = Law(), 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        exact = kind == "parabola"
        points = parabolas(rng, sizes, noise) if exact else points_of(rng, sizes=sizes, noise=noise)
        fit = fit_isoflop(points, level=0.9, draws=400, seed=seed)
        assert fit.params is not None
        end = fit.params.exponent
        hits += end.low <= (0.479 if exact else law.params_exponent) <= end.high
    return hits / draws


@pytest.mark.parametrize(
    ("kind", "sizes", "noise"),
    [
        ("parabola", 4, 0.01),  # 1 degree of freedom a budget
        ("parabola", 10, 0.02),
        ("law", 4, 0.005),  # the true curve is no parabola
        ("law", 6, 0.01),
        ("law", 6, 0.03),  # noise as large as what the sizes differ by
    ],
)
def test_nine_intervals_of_ten_hold_the_exponent(kind: str, sizes: int, noise: float) -> None:
    # 200 draws of a share of 0.9 have a standard deviation of 0.021.
    assert 0.85 <= covered(kind, sizes, noise, 200) <= 0.95


def test_the_chi_square_is_what_makes_few_sizes_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the noise's variance taken for known, intervals of 4 sizes are too narrow."""
    real = np.random.default_rng

    class Known:
        def __init__(self, seed: int) -> None:
            self._rng = real(seed)

        def chisquare(self, freedom: int, count: int) -> np.ndarray:
            return np.full(count, float(freedom))

        def standard_normal(self, *shape: int) -> np.ndarray:
            return self._rng.standard_normal(*shape)

    fits = [parabolas(real(seed), 4, 0.01) for seed in range(200)]
    monkeypatch.setattr(np.random, "default_rng", Known)
    ends = [fit_isoflop(p, level=0.9, draws=400, seed=i).params.exponent for i, p in enumerate(fits)]
    assert np.mean([end.low <= 0.479 <= end.high for end in ends]) < 0.85


def test_the_tokens_follow_from_exact_flops_and_not_from_six_n_d() -> None:
    """FLOPs of a token that are no multiple of N (a head, attention): D* is C over them at N*."""
    rows = []
    for budget in BUDGETS:
        best = 0.3 * budget**0.5
        for params in np.geomspace(best / 4, best * 4, 6):
            tokens = budget / (6 * params + 40 * params**0.5 * 1e3)
            rows.append((budget, params, tokens, 3.0 + 0.05 * np.log(params / best) ** 2, budget))
    fit = fit_isoflop(Points("one", *np.array(rows).T), level=0.9, draws=100, seed=0)
    for p in fit.parabolas:
        assert p.tokens.value == pytest.approx(
            p.budget / (6 * p.params.value + 40e3 * p.params.value**0.5), rel=2e-3
        )  # what a parabola of log D in log N leaves
    assert fit.params is not None
    assert fit.tokens is not None
    assert fit.params.exponent.value + fit.tokens.exponent.value != pytest.approx(1.0, abs=1e-3)


def test_a_budget_without_a_minimum_is_left_out_and_told() -> None:
    points = parabolas(np.random.default_rng(0), 5, 0.0)
    loss = np.where(points.budget == BUDGETS[1], -points.loss, points.loss)
    turned = Points("one", points.flops, points.params, points.tokens, loss, points.budget)
    fit = fit_isoflop(turned, level=0.9, draws=100, seed=0)
    assert [p.has_minimum for p in fit.parabolas] == [True, False, True, True]
    assert any("3e+18 FLOPs: loss has no minimum" in line for line in fit.left_out)
    assert fit.params is not None
    assert fit.params.exponent.value == pytest.approx(0.479)


def test_a_minimum_that_was_not_seen_is_left_out_and_told() -> None:
    points = parabolas(np.random.default_rng(0), 9, 0.001)
    best = 0.3 * BUDGETS[2] ** 0.479
    keep = (points.budget != BUDGETS[2]) | (points.params > 1.2 * best)
    columns = (points.flops, points.params, points.tokens, points.loss, points.budget)
    fit = fit_isoflop(Points("one", *(c[keep] for c in columns)), level=0.9, draws=100, seed=0)
    assert [p.counts for p in fit.parabolas] == [True, True, False, True]
    assert any("9e+18 FLOPs: the minimum lies outside" in line for line in fit.left_out)
    assert len(fit.draws.flops) == 3


def test_two_sizes_are_no_parabola_and_three_give_no_interval() -> None:
    points = parabolas(np.random.default_rng(0), 3, 0.01)
    fit = fit_isoflop(points, level=0.9, draws=100, seed=0)
    assert fit.freedom == 0
    assert fit.params is not None
    assert np.isnan(fit.params.exponent.low)
    two = parabolas(np.random.default_rng(0), 2, 0.01)
    fit = fit_isoflop(two, level=0.9, draws=100, seed=0)
    assert fit.params is None
    assert len(fit.left_out) == len(BUDGETS)


def test_draws_without_a_value_open_the_interval() -> None:
    assert interval(np.arange(1000.0), 0.9) == pytest.approx((49.5, 949.5))
    some = np.concatenate([np.arange(960.0), np.full(40, np.nan)])  # 2% at each end
    assert interval(some, 0.9) == pytest.approx((29.5, 929.5))
    most = np.concatenate([np.arange(800.0), np.full(200, np.nan)])
    assert interval(most, 0.9) == (-np.inf, np.inf)
    assert np.isnan(interval(np.full(5, np.nan), 0.9)).all()


def test_flat_and_noisy_losses_have_an_open_interval() -> None:
    rng = np.random.default_rng(1)
    points = parabolas(rng, 6, 1.0)
    fit = fit_isoflop(points, level=0.9, draws=400, seed=0)
    assert fit.params is None or np.isinf(fit.params.exponent.high)


def test_the_same_seed_gives_the_same_intervals() -> None:
    points = parabolas(np.random.default_rng(0), 5, 0.01)
    first, second = (fit_isoflop(points, level=0.9, draws=200, seed=3) for _ in range(2))
    assert first.params == second.params
    assert fit_isoflop(points, level=0.9, draws=200, seed=4).params != first.params
