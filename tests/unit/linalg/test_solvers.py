"""No input makes a decomposition raise, and what torch can do itself has torch's bits."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.layers import SVDLinear
from lowrise.layers.inits import balanced_factors
from lowrise.linalg import (
    orthonormality_error,
    polar_svd,
    product_singular_values,
    rebalance,
    retract_polar,
    singular_values,
    solvers,
    spectral_norm,
    tangent_step,
)
from lowrise.linalg.subspace import leading_left, range_finder

SCALES = [0.0, 1e-45, 1e-38, 1.0, 1e30, 3e37]


def matrices(scale: float, dtype: torch.dtype = torch.float32) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(3, 6, 4, generator=g, dtype=torch.float64).clamp(-5, 5).mul(scale).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bits_are_those_of_torch(dtype) -> None:
    X = matrices(1.0, dtype)
    S = X.mT @ X
    for mine, theirs in (
        (solvers.svd(X), torch.linalg.svd(X, full_matrices=False)),
        ((solvers.svdvals(X),), (torch.linalg.svdvals(X),)),
        (solvers.eigh(S), torch.linalg.eigh(S)),
        ((solvers.eigvalsh(S),), (torch.linalg.eigvalsh(S),)),
        ((spectral_norm(X),), (torch.linalg.matrix_norm(X, ord=2),)),
    ):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_matrix_that_is_not_finite_spoils_itself_alone(bad) -> None:
    X = matrices(1.0)
    X[1, 2, 3] = bad
    S = torch.stack([x.T @ x for x in X])
    with pytest.warns(RuntimeWarning, match="6 x 4 matrix in torch.float32 is not finite"):
        U, s, Vh = solvers.svd(X)
    with pytest.warns(RuntimeWarning, match="4 x 4 matrix"):
        values, vectors = solvers.eigh(S)
    for i in (0, 2):
        assert torch.equal(s[i], torch.linalg.svdvals(X[i])) or torch.allclose(
            s[i], torch.linalg.svdvals(X[i])
        )
        torch.testing.assert_close((U[i] * s[i]) @ Vh[i], X[i], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close((vectors[i] * values[i]) @ vectors[i].T, S[i], rtol=1e-4, atol=1e-4)
    assert s[1].isnan().all()
    assert values[1].isnan().all()
    assert float(max(orthonormality_error(Y[1]) for Y in (U, Vh.mT, vectors))) == 0.0


@pytest.mark.parametrize("name", ["svd", "svdvals", "eigh", "eigvalsh"])
@pytest.mark.parametrize("fails", [1, 2, 3, 99])
def test_what_does_not_converge_is_done_another_way(name, fails, monkeypatch) -> None:
    """torch's routine refuses the whole batch and then each matrix, scaled, and so on."""
    X = matrices(1e30, torch.float32)
    X = X[0] @ (X[0].mT / 1e30) if name.startswith("eig") else X[0]
    wanted = getattr(torch.linalg, name)(X.double())
    wanted = [wanted] if isinstance(wanted, Tensor) else list(wanted)
    left = [fails]
    for routine in {"svd", "svdvals", "eigh", "eigvalsh"} if fails == 99 else {name}:
        plain = getattr(torch.linalg, routine)

        def refuse(*arguments, plain=plain, **options):
            left[0] -= 1
            if left[0] >= 0:
                raise torch.linalg.LinAlgError("does not converge")
            return plain(*arguments, **options)

        monkeypatch.setattr(torch.linalg, routine, refuse)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = getattr(solvers, name)(X)
    found = [found] if isinstance(found, Tensor) else list(found)
    values = found[1] if name == "svd" else found[0]
    if fails == 99:
        assert "cannot be decomposed (does not converge)" in str(said[0].message)
        assert values.isnan().all()
        return
    assert [str(w.message) for w in said] == [
        f"a {X.shape[0]} x {X.shape[1]} matrix in torch.float32 was decomposed another way"
    ] * (fails > 1)
    expected = wanted[1] if name == "svd" else wanted[0]
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    if name == "svd":
        torch.testing.assert_close((found[0] * values) @ found[2], X, rtol=1e-4, atol=1e25)
    if name == "eigh":
        torch.testing.assert_close((found[1] * values) @ found[1].T, X, rtol=1e-4, atol=1e26)


@pytest.mark.filterwarnings("ignore:a .* matrix in:RuntimeWarning")
@pytest.mark.parametrize("scale", [*SCALES, math.inf, math.nan])
def test_nothing_raises_at_any_scale(scale) -> None:
    X = matrices(scale)
    A, B = X, X.flip(-2)
    results = [
        polar_svd(X),
        singular_values(X),
        spectral_norm(X),
        product_singular_values(A, B),
        *rebalance(A, B),
        retract_polar(torch.eye(6, 4).expand(3, -1, -1), X),
        *tangent_step(A, B, A, B, torch.full((3,), 0.1)),
        *tangent_step(A, B, A, B, torch.full((3,), 0.1), retraction="orthographic", core="mean"),
    ]
    if math.isfinite(scale):
        results += [leading_left(X, 2), range_finder(X, 2, torch.randn(3, 4, 3))]
        assert all(r.isfinite().all() for r in results[:1]), "a polar factor"
        assert results[-1].isfinite().all()
        torch.testing.assert_close(singular_values(X), torch.linalg.svdvals(X.double()), rtol=1e-3, atol=0.0)
        wanted = torch.linalg.svdvals(A.double() @ B.double().mT)[:, :4]
        largest = float(wanted.max())
        torch.testing.assert_close(product_singular_values(A, B), wanted, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scaling_is_exact(dtype) -> None:
    """Measurements and gauges of factors times 4^k are those times 4^k."""
    X = matrices(1.0, dtype)
    A, B = X, X.flip(-1)
    big = 4.0**40
    assert torch.equal(singular_values(X * big), singular_values(X) * big)
    assert torch.equal(product_singular_values(A * big, B * big), product_singular_values(A, B) * big * big)
    for mine, plain in zip(rebalance(A * big, B * big), rebalance(A, B), strict=True):
        assert torch.equal(mine / mine.abs().max(), plain / plain.abs().max())
    for mine, plain in zip(balanced_factors(X[0] * big, 2), balanced_factors(X[0], 2), strict=True):
        assert torch.equal(mine, plain * 2.0**40)


@pytest.mark.parametrize("make", [lambda W: balanced_factors(W, 2), lambda W: SVDLinear.from_dense(W, 2)])
def test_a_weight_that_is_not_finite_is_refused_in_words(make) -> None:
    W = matrices(1.0)[0]
    W[0, 0] = math.nan
    with pytest.raises(UsageError, match="entries that are not finite"):
        make(W)
