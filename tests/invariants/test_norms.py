"""Norms: from below, from above, of a product; and the balanced gauge."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrise.linalg import (
    power_iteration,
    product_singular_values,
    rebalance,
    singular_values,
    spectral_norm,
    spectral_norm_upper,
)


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 40),
    k=st.integers(1, 40),
    decades=st.floats(0, 12),
    scale=st.integers(-30, 30),
    seed=st.integers(0, 10**6),
    iters=st.integers(0, 4),
)
def test_estimate_below_and_bound_above(
    m: int, k: int, decades: float, scale: int, seed: int, iters: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(2, m, k, generator=g) * torch.logspace(0, -decades, k) * 10.0**scale
    true = (
        torch.linalg.matrix_norm(X.double() * 10.0**-scale, 2) * 10.0**scale
    )  # float64: the float32 squares overflow
    sigma, u = power_iteration(X, torch.randn(2, m, generator=g), iters=iters)
    upper = spectral_norm_upper(X)
    assert upper.dtype == torch.float32
    assert (upper.double() >= true).all()
    assert (
        upper.double() <= true * (1 + 3e-5) * min(m, k) ** (1 / 2**14)
    ).all()  # stated slack; 3e-5: two roundings
    assert (sigma.double() <= true * (1 + 1e-5)).all()  # float32 rounding of sums of up to 40 terms
    torch.testing.assert_close(torch.linalg.vector_norm(u, dim=-1), torch.ones(2), rtol=0, atol=1e-5)


def test_upper_bound_with_equal_singular_values_shows_the_stated_slack() -> None:
    Q = torch.linalg.qr(torch.randn(300, 128, dtype=torch.float64)).Q
    ratio = spectral_norm_upper(Q).item()
    assert 1 + 1e-5 <= ratio <= 1.0004  # 128^(1/2^14) = 1.000296


def test_zero_matrices() -> None:
    X = torch.zeros(2, 5, 3)
    u = torch.nn.functional.normalize(torch.randn(2, 5), dim=-1)
    sigma, kept = power_iteration(X, u)
    assert torch.equal(sigma, torch.zeros(2))
    torch.testing.assert_close(kept, u, rtol=0, atol=1e-7)  # normalized again
    assert torch.equal(spectral_norm_upper(X), torch.zeros(2))


def test_a_zero_matrix_beside_others_in_the_batch() -> None:
    X = torch.randn(3, 6, 4, dtype=torch.float64)
    X[1] = 0
    sigma, _ = power_iteration(X, torch.randn(3, 6, dtype=torch.float64), iters=500)
    torch.testing.assert_close(
        sigma, spectral_norm(X), rtol=1e-6, atol=0
    )  # 500 iterations of a random spectrum


def test_an_orthonormal_factor_gives_one_at_the_first_step() -> None:
    Q = torch.linalg.qr(torch.randn(30, 5, dtype=torch.float64)).Q
    sigma, _ = power_iteration(Q, torch.randn(30, dtype=torch.float64), iters=1)
    assert abs(sigma.item() - 1) < 1e-14


def test_product_singular_values_equal_those_of_the_dense_product() -> None:
    L, R = torch.randn(2, 9, 4, dtype=torch.float64), torch.randn(2, 6, 4, dtype=torch.float64)
    dense = torch.linalg.svdvals(L @ R.mT)[:, :4]
    torch.testing.assert_close(product_singular_values(L, R), dense, rtol=1e-12, atol=1e-13)
    thin = product_singular_values(L[:, :2], R)  # fewer rows than columns
    torch.testing.assert_close(thin, torch.linalg.svdvals(L[:, :2] @ R.mT), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (24, 24)])
def test_singular_values_down_to_a_millionth(shape: tuple[int, int]) -> None:
    """Known values between 1 and 1e-6, between random bases."""
    s = torch.logspace(0, -6, 24, dtype=torch.float64)
    U, V = (torch.linalg.qr(torch.randn(3, k, 24, dtype=torch.float64)).Q for k in shape)
    found = singular_values(U * s @ V.mT)
    torch.testing.assert_close(found, s.expand(3, 24), rtol=1e-3, atol=0)
    assert singular_values(torch.zeros(3, 5)).tolist() == [0.0, 0.0, 0.0]


def test_rebalance_keeps_the_product_and_balances() -> None:
    A, B = 20 * torch.randn(3, 12, 4, dtype=torch.float64), 0.1 * torch.randn(3, 9, 4, dtype=torch.float64)
    A2, B2, T = rebalance(A, B)
    torch.testing.assert_close(A2 @ B2.mT, A @ B.mT, rtol=0, atol=1e-11)  # entries up to 20
    torch.testing.assert_close(A2, A @ T, rtol=0, atol=1e-11)
    torch.testing.assert_close(B2 @ T.mT, B, rtol=0, atol=1e-11)
    torch.testing.assert_close(A2.mT @ A2, B2.mT @ B2, rtol=0, atol=1e-11)


def test_rebalance_leaves_a_zero_or_deficient_pair_alone() -> None:
    A, B = torch.randn(4, 12, 4), torch.randn(4, 9, 4)
    B[1] = 0
    A[2, :, 3] = A[2, :, 0]
    A2, B2, T = rebalance(A, B)
    for i in (1, 2):
        assert torch.equal(A2[i], A[i])
        assert torch.equal(B2[i], B[i])
        assert torch.equal(T[i], torch.eye(4))
    assert not torch.equal(A2[0], A[0])
    A2, _, T = rebalance(A[:, :3], B)  # rank 4 cannot be had from 3 rows
    assert torch.equal(A2, A[:, :3])
    assert torch.equal(T[0], torch.eye(4))
