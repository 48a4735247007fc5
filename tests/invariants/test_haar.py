"""The Haar transform of the reference, and GWT's way through block means."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference.haar import haar, inverse_haar, replace_coefficients
from torch import Tensor

from lowrise.linalg.haar import block_sums, rebuilt

F64 = torch.float64


def by_blocks(X: Tensor, approximation: Tensor, factor: Tensor, level: int) -> Tensor:
    """New approximations, and X's details times `factor`, as GWT's step makes them."""
    means = block_sums(X, level) * 2.0**-level
    return rebuilt(X, means, approximation * 2.0 ** (-level / 2), factor, level)


SIZES = [(n, level) for n in (1, 2, 5, 13, 16, 24) for level in (0, 1, 2, 3)]


@pytest.mark.parametrize(("n", "level"), SIZES)
def test_reconstruction_is_perfect_and_nothing_is_lost(n: int, level: int) -> None:
    X = torch.randn(2, 3, n, dtype=F64)
    A, details = haar(X, level)
    # A handful of roundings of numbers of order 1.
    torch.testing.assert_close(inverse_haar(A, details, n), X, rtol=0, atol=1e-13)
    energy = A.square().sum() + sum(D.square().sum() for D in details)
    torch.testing.assert_close(energy, X.square().sum(), rtol=1e-13, atol=0)  # Parseval, zeros padded or not
    assert A.shape == (2, 3, math.ceil(n / 2**level))
    lengths = [n]
    for _ in range(level):
        lengths.append(math.ceil(lengths[-1] / 2))
    assert [D.shape[-1] for D in details] == lengths[:0:-1], "ceil, level by level"


def test_the_transform_agrees_with_pywavelets() -> None:
    pywt = pytest.importorskip("pywt")
    X = torch.randn(3, 13, dtype=F64)
    expected = pywt.wavedec(X.numpy(), "haar", mode="zero", level=2, axis=-1)
    A, details = haar(X, 2)
    for got, golden in zip([A, *details], expected, strict=True):
        torch.testing.assert_close(got, torch.from_numpy(golden), rtol=0, atol=1e-14)


@given(n=st.integers(1, 40), level=st.integers(0, 4), seed=st.integers(0, 99))
def test_block_means_are_the_transform(n: int, level: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(2, 3, n, dtype=F64, generator=g)
    A, _ = haar(X, level)
    torch.testing.assert_close(block_sums(X, level) * 2.0 ** (-level / 2), A, rtol=0, atol=1e-13)
    new, factor = torch.randn(A.shape, dtype=F64, generator=g), torch.rand(A.shape, dtype=F64, generator=g)
    torch.testing.assert_close(
        by_blocks(X, new, factor, level),
        replace_coefficients(X, new, factor, level),
        rtol=0,
        atol=1e-13,  # some roundings of numbers of order 1
    )


def test_a_matrix_that_is_constant_on_blocks_has_no_details() -> None:
    X = torch.randn(3, 4, dtype=F64).repeat_interleave(4, dim=-1)
    A, details = haar(X, 2)
    assert all((D == 0).all() for D in details)
    torch.testing.assert_close(A, 2 * X[:, ::4])  # sqrt(4) times the mean
    garbage = torch.full_like(A, 1e6)
    assert torch.equal(by_blocks(X, torch.zeros_like(A), garbage, 2), torch.zeros_like(X))
