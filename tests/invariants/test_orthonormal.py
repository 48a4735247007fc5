"""Retractions, complements and their accuracy; tolerances are those of the table in `linalg.orthonormal`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowrise.linalg import (
    complement,
    orthonormality_error,
    qf,
    retract_polar,
    retract_qr,
    tangent,
)

SHAPES = [(64, 64), (64, 16), (256, 32), (512, 128), (9, 1)]


def start(p: int, r: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return qf(torch.randn(batch, p, r, dtype=torch.float64)).to(dtype)


def step(X: Tensor, norm: float) -> Tensor:
    Z = torch.randn_like(X)
    return Z * (norm / torch.linalg.matrix_norm(Z, ord=2)[:, None, None])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", [0.0, 0.03, 0.3, 0.7])
def test_cholesky_is_householder_with_the_sign_fix(shape: tuple[int, int], norm: float) -> None:
    X = start(*shape)
    Z = step(X, norm)
    Q = retract_qr(X, Z)
    # float32 rounding, times the condition of X + Z (at most 6)
    torch.testing.assert_close(Q.double(), qf((X + Z).double()), rtol=0, atol=1e-6)
    assert orthonormality_error(Q).max() <= 1e-6


@pytest.mark.parametrize("norm", [2.0, 10.0])
def test_large_steps_take_a_second_pass_and_are_still_qf(norm: float) -> None:
    X = start(64, 16)
    Z = step(X, norm)
    Q = retract_qr(X, Z)
    torch.testing.assert_close(Q.double(), qf((X + Z).double()), rtol=0, atol=5e-6)
    assert orthonormality_error(Q).max() <= 1e-6


def test_dependent_columns_shorten_the_step_of_that_matrix_only() -> None:
    X = start(64, 16, batch=4)
    Z = step(X, 0.3)
    Z[0, :, 3] = -X[0, :, 3]  # a zero column
    Z[1, :, 5] = (X + Z)[1, :, 4] - X[1, :, 5]  # two equal columns
    Z[2] *= 1e20  # squares overflow in float32
    Q = retract_qr(X, Z)
    assert Q.isfinite().all()
    assert orthonormality_error(Q).max() <= 1e-6
    torch.testing.assert_close(Q[3].double(), qf((X + Z)[3].double()), rtol=0, atol=1e-6)
    for i in range(3):
        moved = torch.linalg.matrix_norm(Q[i] - X[i]).item()
        assert 0 < moved <= 1.1  # the way of a step of norm 1/2, at most twice as far


def test_not_a_number_moves_nothing() -> None:
    X = start(16, 4)
    Z = torch.full_like(X, float("nan"))
    assert torch.equal(retract_qr(X, Z), X)


def test_input_is_left_alone() -> None:
    X = start(16, 4)
    Z = step(X, 0.1)
    kept = X.clone(), Z.clone()
    retract_qr(X, Z), retract_polar(X, Z), tangent(X, Z)
    assert torch.equal(X, kept[0])
    assert torch.equal(Z, kept[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_polar_is_the_nearest_orthonormal_matrix(shape: tuple[int, int]) -> None:
    X = start(*shape)
    Z = step(X, 0.3)
    Q = retract_polar(X, Z)
    U, _, Vh = torch.linalg.svd((X + Z).double(), full_matrices=False)
    torch.testing.assert_close(Q.double(), U @ Vh, rtol=0, atol=2e-6)
    assert orthonormality_error(Q).max() <= 1e-6


def test_tangent_is_a_projection_to_steps_without_symmetric_part() -> None:
    X = start(40, 7, dtype=torch.float64)
    Z = torch.randn_like(X)
    T = tangent(X, Z)
    S = X.mT @ T
    torch.testing.assert_close(S, -S.mT, rtol=0, atol=1e-13)
    torch.testing.assert_close(tangent(X, T), T, rtol=0, atol=1e-13)


def test_qf_keeps_a_zero_on_the_diagonal() -> None:
    """`torch.sign` would give 0 there, and the factor would lose a column for ever."""
    Y = torch.zeros(6, 3)
    Y[:, 0] = -1.0
    assert orthonormality_error(qf(Y)) <= 1e-6


@pytest.mark.parametrize(("p", "r", "d"), [(64, 56, 8), (64, 16, 8), (12, 4, 3)])
def test_complement_extends_the_basis(p: int, r: int, d: int) -> None:
    X = start(p, r, batch=1)[0]
    added = complement(X, torch.randn(p, d))
    assert orthonormality_error(torch.cat([X, added], dim=1)) <= 1e-6


def test_cholesky_of_a_raw_gaussian_is_not_used_for_the_start() -> None:
    """A float32 pass over a square Gaussian is off by 1e-3 or fails: the start is by Householder."""
    from lowrise.layers import SVDLinear

    with pytest.warns(UserWarning, match="no smaller"):
        layer = SVDLinear(128, 128, 128)
    assert layer.orthonormality_error() <= 1e-7
