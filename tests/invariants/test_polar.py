"""Polar factors: the range that each promises, scale, orientation, dtype."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lowrise.linalg import QUINTIC, newton_schulz, polar_express, polar_svd
from lowrise.linalg.polar import QUINTIC_SUPREMUM, rounding_guard


def with_singular_values(s: Tensor, m: int) -> Tensor:
    """An m x len(s) matrix with these singular values and random singular vectors."""
    U = torch.linalg.qr(torch.randn(m, len(s), dtype=s.dtype)).Q
    V = torch.linalg.qr(torch.randn(len(s), len(s), dtype=s.dtype)).Q
    return (U * s) @ V.T


def quintic_of(x: Tensor, steps: int = 5) -> Tensor:
    a, b, c = QUINTIC
    for _ in range(steps):
        x = a * x + b * x**3 + c * x**5
    return x


def test_the_supremum_of_the_quintic_is_what_the_docstring_says() -> None:
    x = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    for steps in range(1, 12):
        assert quintic_of(x, steps).max() <= QUINTIC_SUPREMUM
    assert quintic_of(x, 5).max() > 1.2023  # 1.20237 but for the grid; the constant is that rounded up
    beyond = torch.linspace(0, QUINTIC_SUPREMUM, 200_001, dtype=torch.float64)
    assert quintic_of(beyond, 1).max() <= QUINTIC_SUPREMUM, "the interval is mapped into itself"


def test_newton_schulz_acts_on_singular_values_as_the_polynomial() -> None:
    s = torch.tensor([0.9, 0.3, 0.1, 0.01, 1e-3], dtype=torch.float64)
    X = with_singular_values(s, 12)
    got = torch.linalg.svdvals(newton_schulz(X, eps=0.0))
    expected = quintic_of(s / torch.linalg.vector_norm(s)).sort(descending=True).values
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)  # float64 rounding, no ill-conditioned step


def test_published_range_of_the_quintic() -> None:
    for _ in range(20):
        s = 0.002 + torch.rand(10, dtype=torch.float64)  # smallest value above 0.0016 of the Frobenius norm
        s[0] = 0.0017 * torch.linalg.vector_norm(s)
        values = torch.linalg.svdvals(newton_schulz(with_singular_values(s, 17)))
        assert values.max() <= 1.2024
        assert values.min() >= 0.6818 - 1e-4  # 0.68178 is the local minimum p(1.0501)


def test_rank_one_gives_the_fifth_iterate_of_one() -> None:
    X = torch.outer(torch.randn(9, dtype=torch.float64), torch.randn(4, dtype=torch.float64))
    norm = torch.linalg.matrix_norm(newton_schulz(X), 2).item()
    assert norm == pytest.approx(0.6964364, abs=1e-7)  # dossier, seven digits; eps 1e-7 moves the eighth


def test_bfloat16_iteration_stays_in_range() -> None:
    s = 0.01 + torch.rand(32)
    values = torch.linalg.svdvals(newton_schulz(with_singular_values(s, 64), dtype=torch.bfloat16))
    assert values.max() <= 1.2024 + 0.03  # 0.03: bfloat16 rounding, dossier section 6
    assert values.min() >= 0.6818 - 0.03


@pytest.mark.parametrize("function", [newton_schulz, polar_express, polar_svd])
def test_wide_is_the_transpose_of_tall_and_batches_are_independent(function) -> None:
    X = torch.randn(2, 3, 20, 8, dtype=torch.float64)
    torch.testing.assert_close(function(X.mT), function(X).mT, rtol=0, atol=1e-12)
    torch.testing.assert_close(function(X)[1, 2], function(X[1, 2]), rtol=0, atol=1e-12)  # order of sums only


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_float32_scales_do_not_matter(scale: float) -> None:
    X = torch.randn(16, 6)
    for function in (lambda M: newton_schulz(M, eps=0.0), polar_express):
        torch.testing.assert_close(
            function(X * scale), function(X), rtol=0, atol=2e-5
        )  # rounding of X * scale


def test_published_normalization_is_kept_exactly() -> None:
    X = torch.randn(7, 5, dtype=torch.float64) * 1e-7  # where eps matters
    a, b, c = QUINTIC
    for rule, norm in (("add", X.norm() + 1e-7), ("max", X.norm().clamp_min(1e-7))):
        Y = X / norm
        for _ in range(5):
            S = Y.T @ Y
            Y = a * Y + Y @ (b * S + c * S @ S)
        torch.testing.assert_close(newton_schulz(X, eps_rule=rule), Y, rtol=0, atol=1e-13)


@pytest.mark.parametrize("function", [newton_schulz, polar_express, polar_svd])
def test_zero_gives_zero_and_the_input_is_left_alone(function) -> None:
    X = torch.randn(5, 4)
    before = X.clone()
    function(X)
    assert torch.equal(X, before)
    assert torch.equal(function(torch.zeros(3, 5, 4)), torch.zeros(3, 5, 4))


def test_polar_express_on_the_interval_as_promised() -> None:
    # A diagonal matrix shows the polynomial on many values; padding makes the Frobenius norm exactly 1.
    x = torch.cat([torch.logspace(-3, -2, 40), torch.linspace(0.01, 0.2, 40)]).double()
    X = torch.diag(torch.cat([x, (1 - (x**2).sum()).sqrt()[None]]))
    values = polar_express(X).diagonal()
    assert values.max() <= 0.9999985
    assert values[40:].min() >= 0.99999
    assert values.min() >= 0.99998  # 0.99999 over [1e-3, 1], of the norm; x itself is rounded
    six, five = (polar_express(X, steps=k).diagonal().max() for k in (6, 5))
    assert six <= 1.0013
    assert five <= 1.1237


@pytest.mark.parametrize("shape", [(1, 1), (6, 6), (40, 3), (200, 64), (160, 160)])
def test_polar_express_in_float32_stays_below_its_guard(shape: tuple[int, int]) -> None:
    m, k = shape
    for decades in (0.0, 1.0, 3.0, 6.0, 12.0):
        X = with_singular_values(torch.logspace(0, -decades, k), m)
        norm = np.linalg.norm(polar_express(X).double().numpy(), 2)
        assert norm <= rounding_guard(torch.float32), "measured: 1e-6 around 1 for every shape"


def test_polar_svd_drops_null_directions() -> None:
    s = torch.tensor([1.0, 0.5, 1e-14, 0.0], dtype=torch.float64)
    values = torch.linalg.svdvals(polar_svd(with_singular_values(s, 9)))
    torch.testing.assert_close(
        values, torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64), atol=1e-12, rtol=0
    )
