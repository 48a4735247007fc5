"""Methods that need a known share of the FLOPs of another."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_scaling import points_of, study

from lowrise.scaling.fit import fit_study, sentence
from lowrise.scaling.isoflop import Draws, fit_isoflop
from lowrise.scaling.multiplier import Multiplier, multiplier
from lowrise.scaling.options import FitRules

RULES = FitRules(draws=400)


def against(times: float, seed: int, noise: float, **options) -> Multiplier:
    rng = np.random.default_rng(seed)
    own, other = (
        fit_isoflop(
            points_of(rng, noise=noise, times=t, **options), level=0.9, draws=400, seed=seed + 7919 * i
        )
        for i, t in enumerate((times, 1.0))
    )
    return multiplier("new", own.draws, "old", other.draws, level=0.9)


@pytest.mark.parametrize("times", [0.71, 1.0, 1.6])
def test_without_noise_it_is_the_share(times: float) -> None:
    found = against(times, 0, 1e-9)
    assert found.times is not None
    assert found.at_small is not None
    assert found.at_large is not None
    # The frontier is no parabola in log C: a fraction of a percent over 1.4 decades.
    assert found.times.value == pytest.approx(times, rel=0.01)
    assert found.at_small.value == pytest.approx(times, rel=0.03)
    assert found.at_large.value == pytest.approx(times, rel=0.03)


@pytest.mark.parametrize(("sizes", "noise"), [(4, 0.005), (6, 0.01)])
def test_nine_intervals_of_ten_hold_the_share(sizes: int, noise: float) -> None:
    found = [against(0.71, seed, noise, sizes=sizes) for seed in range(200)]
    hits = [m.times is not None and m.times.low <= 0.71 <= m.times.high for m in found]
    assert 0.85 <= np.mean(hits) <= 0.95


def test_methods_without_a_loss_in_common_have_no_share() -> None:
    found = against(1000.0, 0, 0.001)
    assert found.times is None
    assert sentence(found) == (
        "new against old: no multiplier, because new reaches at no budget the loss that old has at its "
        "smallest."
    )
    turned = against(0.001, 0, 0.001)
    assert turned.why_none == "old reaches at no budget the loss that new has at its smallest"


def test_a_share_that_changes_with_the_compute_is_told() -> None:
    flops = np.array([1e18, 2e18, 4e18, 8e18])
    noise = 0.0005 * np.random.default_rng(0).standard_normal((2, 300, 4))
    fast, slow = (3.0 * (flops / 1e18) ** power for power in (-0.08, -0.05))
    draws = [Draws(flops, loss, loss + more) for loss, more in zip((fast * 1.02, slow), noise, strict=True)]
    found = multiplier("new", draws[0], "old", draws[1], level=0.9)
    assert found.changes
    assert "It changes with the compute: 1." in sentence(found)
    assert not multiplier("same", draws[1], "old", draws[1], level=0.9).changes


def test_losses_that_do_not_fall_have_no_share() -> None:
    flops = np.array([1e18, 2e18, 4e18])
    steady = Draws(flops, np.array([3.0, 2.9, 2.8]), np.tile([3.0, 2.9, 2.8], (100, 1)))
    rising = Draws(flops, np.array([2.8, 2.9, 3.0]), np.tile([2.8, 2.9, 3.0], (100, 1)))
    found = multiplier("new", rising, "old", steady, level=0.9)
    assert found.times is None
    assert found.why_none == "the loss of one of them does not fall steadily"


def test_the_sentence_says_who_needs_how_much_of_whose() -> None:
    rng = np.random.default_rng(5)
    points = study(rng, method="lowrank", noise=0.003)
    points += study(rng, method="spectron", noise=0.003, times=0.71)
    found = fit_study(points, RULES)
    assert found.reference == "lowrank"
    (one,) = found.multipliers
    assert sentence(one).startswith("spectron needs 0.7")
    assert sentence(one).endswith("of lowrank's FLOPs for the same loss.")
    turned = fit_study(points, FitRules(draws=400, reference="spectron")).multipliers[0]
    assert turned.times is not None
    assert one.times is not None
    assert turned.times.value == pytest.approx(1 / one.times.value, rel=0.02)  # other draws, other ends
