"""SWAN's operators: GradNorm, the coupled iteration and its variant with diagonals."""

from __future__ import annotations

import pytest
import torch
from reference import normalizing
from torch import Tensor

from lowrise.linalg import polar_svd, standardize, whiten, whiten_diagonal

F64 = torch.float64


def conditioned(smallest: float, size: int = 64) -> Tensor:
    """A square matrix with singular values from 1 down to `smallest`, evenly in their logarithm."""
    U, V = (torch.linalg.qr(torch.randn(size, size, dtype=F64)).Q for _ in range(2))
    s = torch.logspace(0, torch.tensor(smallest).log10().item(), size, dtype=F64)
    return (U * s) @ V.T


def cosine(X: Tensor, Y: Tensor) -> float:
    return ((X * Y).sum() / (X.norm() * Y.norm())).item()


@pytest.mark.parametrize("dim", [-1, -2])
@pytest.mark.parametrize("center", [True, False])
def test_lines_have_mean_0_and_rms_1(dim: int, center: bool) -> None:
    G = 3.0 + torch.randn(2, 9, 14, dtype=F64) * torch.logspace(-3, 3, 9, dtype=F64)[:, None]
    N = standardize(G, dim=dim, center=center)
    ones = torch.ones_like(N.sum(dim))
    torch.testing.assert_close(N.square().mean(dim).sqrt(), ones, rtol=1e-12, atol=0)
    assert (N.mean(dim).abs().max() < 1e-12) == center
    torch.testing.assert_close(
        N.norm(dim=(-2, -1)), torch.full((2,), 126.0, dtype=F64).sqrt(), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_zero_and_constant_lines_become_zero(dtype: torch.dtype) -> None:
    G = torch.randn(6, 37, dtype=dtype)
    G[1], G[4] = 0.0, 0.1  # the mean of 37 times 0.1 is not 0.1 after rounding
    for center in (True, False):
        N = standardize(G, center=center)
        assert N.isfinite().all()
        assert (N[1] == 0).all()
        assert (N[4] == 0).all() == center
    assert (whiten(torch.zeros(4, 6, dtype=dtype)) == 0).all()
    assert (whiten_diagonal(torch.zeros(4, 6, dtype=dtype)) == 0).all()


def test_standardizing_does_not_depend_on_the_scale() -> None:
    G = torch.randn(5, 8)
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(standardize(scale * G), standardize(G), rtol=1e-5, atol=1e-6)  # float32


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (12, 12)])
def test_beta_one_half_converges_to_the_polar_factor(shape) -> None:
    """Dossier: 40 steps and more in float64 agree to 1e-8."""
    N = standardize(torch.randn(3, *shape, dtype=F64), center=False)
    got = whiten(N, steps=45, beta=0.5)
    torch.testing.assert_close(got, polar_svd(N), rtol=0, atol=1e-8)
    p = min(shape)
    gram = got @ got.mT if shape[0] <= shape[1] else got.mT @ got
    torch.testing.assert_close(gram, torch.eye(p, dtype=F64).expand_as(gram), rtol=0, atol=1e-8)


def test_singular_values_follow_the_stated_map() -> None:
    N = torch.randn(7, 18, dtype=F64)
    w = torch.linalg.svdvals(N).square() / N.square().sum()
    for beta, steps in ((0.8, 10), (0.8, 1), (0.5, 6)):
        x = w.clone()
        for _ in range(steps):
            x = beta**2 * x * (3 - x) ** 2
        got = torch.linalg.svdvals(whiten(N, steps=steps, beta=beta))
        # Ten steps of a map that expands by up to 6 each, from float64 rounding.
        torch.testing.assert_close(got, x.sqrt().sort(descending=True).values, rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(64, 64), (64, 172), (172, 64)])
def test_beta_of_swan_bounds_singular_values_by_twice_itself(shape) -> None:
    N = standardize(torch.randn(shape, dtype=F64))
    got = whiten(N)
    assert torch.linalg.svdvals(got).max() <= 1.6 * (1 + 1e-9)
    assert cosine(got, polar_svd(N)) == pytest.approx(0.96, abs=0.01)  # dossier: for all shapes


def test_bfloat16_destroys_the_coupled_iteration() -> None:
    """The reason why SWAN iterates in float32: an ill-conditioned square gradient."""
    N = standardize(conditioned(1e-3), center=False)
    for beta, steps in ((0.8, 10), (0.5, 20)):
        exact = whiten(N, steps=steps, beta=beta)
        narrow = whiten(N.bfloat16(), steps=steps, beta=beta).double()
        assert not (narrow - exact).norm() < 10 * exact.norm(), "nan, inf, or far away"
        single = whiten(N.float(), steps=steps, beta=beta).double()
        assert (single - exact).norm() < 0.03 * exact.norm()  # measured 0.004: amplified float32 rounding


@pytest.mark.parametrize("shape", [(128, 512), (256, 256)])
def test_rounding_stays_small_at_sizes_of_models(shape) -> None:
    """Products of two polynomials of S are symmetric, and may not be mirrored: the error would be 1.3."""
    m, n = shape
    g = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(rows, m, generator=g, dtype=F64)).Q for rows in (m, n))
    N = (U * torch.logspace(0, -2, m, dtype=F64)) @ V.T
    for beta in (0.5, 0.8):
        error = torch.linalg.matrix_norm(whiten(N.float(), beta=beta).double() - whiten(N, beta=beta), 2)
        assert error < 5e-3  # measured: 6e-4 with 0.8, 9e-6 with 0.5


def test_diagonals_help_wide_gaussian_matrices() -> None:
    N = standardize(torch.randn(64, 172, dtype=F64), center=False)
    exact = polar_svd(N)
    assert cosine(N, exact) < 0.96 < 0.98 < cosine(whiten_diagonal(N), exact)


def test_batches_and_input_are_left_alone() -> None:
    N = standardize(torch.randn(2, 3, 5, 9, dtype=F64))
    before = N.clone()
    for operator in (whiten, whiten_diagonal):
        whole = operator(N)
        assert torch.equal(N, before)
        # Batched and single products may sum in another order; ten steps enlarge that.
        torch.testing.assert_close(whole[1, 2], operator(N[1, 2]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(3, 8, 20), (20, 8), (12, 12)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (F64, 1e-12)])
def test_products_with_their_factor_inside_are_those_of_the_reference(shape, dtype, tolerance) -> None:
    N = standardize(torch.randn(*shape, dtype=dtype))
    for steps in (1, 2, 10):
        expected = normalizing.whiten(N, steps=steps)
        torch.testing.assert_close(whiten(N, steps=steps), expected, rtol=tolerance, atol=tolerance)
