"""Inverse roots: how exact, up to which condition, and what becomes of what has none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lowrise.linalg.inverse_root import (
    PUBLISHED_SHIFT,
    PUBLISHED_SHRINK,
    SEVEN_STEPS,
    cholesky_root,
    eigen_root,
    iterated_root,
)

ROOTS = {"cholesky": cholesky_root, "eigh": eigen_root, "iterated": iterated_root}


def published(S: Tensor) -> Tensor:
    return iterated_root(S, triples=SEVEN_STEPS, shift=PUBLISHED_SHIFT, shrink=PUBLISHED_SHRINK)


def gram(condition: float, r: int = 16, batch: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    """Symmetric, eigenvalues from 1 down to 1 / condition."""
    g = torch.Generator().manual_seed(2)
    Q = torch.linalg.qr(torch.randn(batch, r, r, generator=g, dtype=torch.float64)).Q
    S = (Q * torch.logspace(0, -math.log10(condition), r, dtype=torch.float64)) @ Q.mT
    return ((S + S.mT) / 2).to(dtype)


def error(R: Tensor, S: Tensor) -> float:
    """||R^T S R - I||_2, in float64."""
    R, S = R.double(), S.double()
    return float(torch.linalg.matrix_norm(R.mT @ S @ R - torch.eye(S.shape[-1]), 2).max())


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("name", ROOTS)
def test_a_root_is_one(name: str, condition: float) -> None:
    """Rounding is enlarged by the condition. Measured 1e-11 at 1e6, for the iteration 1e-9: its shift is 4
    eps.
    """
    S = gram(condition)
    R = ROOTS[name](S)
    assert error(R, S) < 1e-14 + 2e-14 * condition
    assert torch.allclose(R @ R.mT @ S, torch.eye(16).double(), atol=1e-13 * condition + 1e-13)


@pytest.mark.parametrize("name", ROOTS)
def test_in_float32(name: str) -> None:
    S = gram(1e3, dtype=torch.float32)
    R = ROOTS[name](S)
    assert R.dtype == torch.float32
    assert error(R, S) < 1e-3  # 1e3 eps = 1.2e-4, and the sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("r", "condition"), [(33, 10.0), (70, 1e2), (128, 1e3)])
def test_by_halves_a_root_is_as_exact_as_by_lapack(r: int, condition: float, dtype: torch.dtype) -> None:
    """Ranks above `LAPACK_ROWS`. Measured: at most twice the error."""
    S = gram(condition, r=r, dtype=dtype)
    L = torch.linalg.cholesky(S)
    plain = torch.linalg.solve_triangular(L, torch.eye(r, dtype=dtype).expand_as(L), upper=False).mT
    R = cholesky_root(S)
    assert torch.equal(R, R.triu())
    assert error(R, S) < 4 * error(plain, S)
    assert torch.equal(R[1], cholesky_root(S[1]))  # alone as among others


@pytest.mark.parametrize("place", [0, 40, 69])
def test_by_halves_a_null_direction_is_seen_wherever_it_is(place: int) -> None:
    """A column that repeats another, in either half: the root of its neighbours in the batch stays."""
    B = torch.randn(2, 200, 70, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    B[1, :, place] = B[1, :, 20]
    S = B.mT @ B
    R = cholesky_root(S)
    values = torch.linalg.svdvals(B[1] @ R[1])
    assert torch.allclose(values[:69], torch.ones(69).double(), atol=1e-4)
    assert values[69] < 1e-4
    assert torch.equal(R[0], cholesky_root(S[0]))


def test_the_published_shift_costs_what_it_is_said_to() -> None:
    """On eigenvalues of 1 / condition of the norm 1e-5 is added."""
    errors = [error(published(gram(c)), gram(c)) for c in (1e1, 1e2, 1e3)]
    assert errors == pytest.approx([1.9e-4, 1.5e-3, 1.3e-2], rel=0.1)
    assert error(iterated_root(gram(1e3), triples=SEVEN_STEPS), gram(1e3)) < 1e-11  # without it


def test_the_roots_are_triangular_and_symmetric() -> None:
    S = gram(1e2)
    assert torch.equal(cholesky_root(S), cholesky_root(S).triu())
    for root in (eigen_root(S), iterated_root(S)):
        assert torch.allclose(root, root.mT, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("root", [*ROOTS.values(), published])
def test_nothing_known_gives_nothing(root, dtype: torch.dtype) -> None:
    """Zero matrices, and such as are not finite, beside a sound one that keeps its root."""
    sound = gram(10.0, batch=1, dtype=dtype)[0]
    bad = torch.full_like(sound, torch.inf), torch.full_like(sound, torch.nan)
    R = root(torch.stack([torch.zeros_like(sound), sound, *bad]))
    for place in (0, 2, 3):
        assert not R[place].any()
    assert torch.allclose(R[1], root(sound[None])[0], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lengths", ["alike", "far apart"])
def test_a_column_in_the_span_of_others_gives_no_long_direction(lengths: str, dtype: torch.dtype) -> None:
    """B R is a partial isometry on the rest; along the null direction R stays below the others."""
    g = torch.Generator().manual_seed(4)
    B = torch.randn(30, 6, generator=g, dtype=torch.float64)
    B[:, 5] = B[:, 1] - 2 * B[:, 3]
    if lengths == "far apart":
        B = B * torch.tensor([1e-4, 1.0, 1e3, 1.0, 10.0, 1.0], dtype=torch.float64)
    B = B.to(dtype)
    R = cholesky_root(B.mT @ B)
    values = torch.linalg.svdvals(B @ R)
    assert torch.allclose(
        values[:5], torch.ones(5, dtype=dtype), atol=2e-2
    )  # d = (r eps)^(2/3) is 8e-5 in float32
    assert values[5] < 1e-2
    shortest = torch.linalg.vector_norm(B, dim=0).amin()
    assert float(torch.linalg.matrix_norm(R, 2)) < 10 / float(shortest)


def test_a_zero_column_is_left_out() -> None:
    B = torch.randn(9, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    B[:, 1] = 0.0
    R = cholesky_root(B.mT @ B)
    assert not R[1].any()
    kept = R[[0, 2]]
    assert torch.allclose(kept @ kept.mT, torch.linalg.inv((B.mT @ B)[[0, 2]][:, [0, 2]]), rtol=1e-8)


@pytest.mark.parametrize("root", [cholesky_root, eigen_root, iterated_root])
def test_a_gauge_turns_the_root_by_an_orthogonal_matrix(root) -> None:
    """R of M^T S M is M^-1 R Q: whoever uses f(X R) R^T with f(X Q) = f(X) Q sees no gauge."""
    S, M = gram(10.0, r=5, batch=1)[0], gram(100.0, r=5, batch=1)[0] + 0.1
    R, moved = root(S), root(M.mT @ S @ M)
    Q = torch.linalg.solve(torch.linalg.solve(M, R), moved)
    assert torch.allclose(Q @ Q.mT, torch.eye(5).double(), atol=1e-8)
