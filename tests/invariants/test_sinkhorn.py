"""Square-root Sinkhorn: norms, symmetries, zeros, and the vectors against the alternating form."""

from __future__ import annotations

import pytest
import torch
from reference import normalizing
from torch import Tensor

from lowrise.linalg import sinkhorn, sinkhorn_vectors

F64 = torch.float64
SHAPES = [(64, 64), (64, 172), (18, 7)]


def ordinary_sinkhorn(P: Tensor, iters: int) -> Tensor:
    """Rows to sum n, columns to sum m, in turn."""
    m, n = P.shape
    for _ in range(iters):
        P = P * (n / P.sum(1, keepdim=True))
        P = P * (m / P.sum(0, keepdim=True))
    return P


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("iters", [1, 5])
@pytest.mark.parametrize("rows_first", [True, False])
@pytest.mark.parametrize(("dtype", "bar"), [(F64, 1e-12), (torch.float32, 1e-5)])  # dossier: 1e-10 and 1e-5
def test_vectors_are_the_alternating_form(shape, iters, rows_first, dtype, bar) -> None:
    G = torch.randn(3, *shape, dtype=dtype)
    options = {"iters": iters, "rows_first": rows_first}
    torch.testing.assert_close(sinkhorn(G, **options), normalizing.sinkhorn(G, **options), rtol=bar, atol=bar)
    r, c = sinkhorn_vectors(G, **options)
    assert (r > 0).all()
    assert (c > 0).all()
    assert (r.shape, c.shape) == ((3, shape[0]), (3, shape[1]))


@pytest.mark.parametrize("shape", SHAPES)
def test_norms(shape) -> None:
    m, n = shape
    G = torch.randn(shape, dtype=F64) * torch.logspace(0, 2, m, dtype=F64)[:, None]
    X = sinkhorn(G)
    torch.testing.assert_close(X.norm(dim=0), torch.full((n,), m**0.5, dtype=F64), rtol=1e-12, atol=0)
    # After five iterations, dossier: 1.4e-5 at 64 x 64; a small matrix mixes less and is further off.
    assert (X.norm(dim=1) / n**0.5 - 1).abs().max() < (1e-4 if m >= 64 else 1e-1)
    assert X.norm().item() == pytest.approx((m * n) ** 0.5, rel=1e-12), "an update of RMS 1"
    assert (X * G).sum() > 0, "a descent direction"
    assert torch.equal(X.sign(), G.sign())


def test_symmetries_and_the_fixed_point() -> None:
    G = torch.randn(12, 20, dtype=F64)
    X = sinkhorn(G)
    for other in (3e5 * G, 1e-200 * G, torch.rand(12, 1, dtype=F64).add(0.1) * G):
        torch.testing.assert_close(sinkhorn(other), X, rtol=1e-12, atol=0)
    torch.testing.assert_close(X.square(), ordinary_sinkhorn(G.square(), 5), rtol=1e-12, atol=0)
    limit = sinkhorn(G, iters=50)
    torch.testing.assert_close(sinkhorn(limit, iters=50), limit, rtol=1e-10, atol=0)  # converged to rounding


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_zero_lines_stay_zero_and_finite_at_any_scale(scale: float) -> None:
    G = scale * torch.randn(2, 10, 14)
    G[:, 3], G[:, :, 5] = 0, 0
    G[1] = 0
    X = sinkhorn(G)
    assert X.isfinite().all()
    assert (X[:, 3] == 0).all()
    assert (X[:, :, 5] == 0).all()
    assert (X[1] == 0).all()
    kept = [j for j in range(14) if j != 5]
    # 4 float32 digits and more: sums of ten squares.
    torch.testing.assert_close(X[0, :, kept].norm(dim=0), torch.full((13,), 10**0.5), rtol=1e-5, atol=0)


def test_the_few_rows_of_a_sparse_gradient_are_inflated() -> None:
    """Dossier: 10 of 50 rows end at 2.2 sqrt(n), which is why embeddings are not given to SinkGD."""
    G = torch.zeros(50, 20, dtype=F64)
    G[:10] = torch.randn(10, 20, dtype=F64)
    rows = sinkhorn(G)[:10].norm(dim=1) / 20**0.5
    assert rows.mean().item() == pytest.approx(5**0.5, rel=0.01)


def test_a_line_far_below_all_others_counts_as_zero() -> None:
    G = torch.randn(6, 8)
    G[2] *= 1e-15
    X = sinkhorn(G)
    assert X.isfinite().all()
    assert (X[2] == 0).all()
