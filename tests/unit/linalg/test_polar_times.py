"""Polar factors of several matrices at once, times a matrix on the right, against those of each by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowrise.linalg import newton_schulz, polar_express, polar_svd
from lowrise.linalg.polar import POLAR_EIGHT, POLAR_EXPRESS, QUINTIC, polar_times

SHAPES = [(40, 8), (8, 8), (5, 8), (64, 8), (12, 8)]  # Gram form and plain, tall, square and wide


def matrices(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    g = torch.Generator().manual_seed(0)
    Xs = [torch.randn(2, *shape, generator=g, dtype=torch.float64).to(dtype) for shape in SHAPES]
    rights = [torch.randn(2, 8, 8, generator=g, dtype=torch.float64).to(dtype) for _ in SHAPES]
    return Xs, rights


@pytest.mark.parametrize("form", ["auto", "plain", "gram"])
def test_each_is_what_it_is_by_itself(form: str) -> None:
    Xs, rights = matrices(torch.float64)
    before = [X.clone() for X in Xs]
    quintic = polar_times(Xs, torch.cat(rights), [QUINTIC] * 5, form=form)
    express = polar_times(Xs, torch.cat(rights), POLAR_EXPRESS, safety=1.01, form=form)
    for X, right, a, b, kept in zip(Xs, rights, quintic, express, before, strict=True):
        assert torch.allclose(a, newton_schulz(X, eps=0.0) @ right, atol=1e-11)
        assert torch.allclose(b, polar_express(X) @ right, atol=1e-9)  # f(0)^2 eps = 3e-9
        assert torch.equal(X, kept)


def test_eight_steps_end_near_one() -> None:
    """The published schedule: within 7e-4 (rounded) for singular values above 1e-4 of the norm."""
    g = torch.Generator().manual_seed(3)
    U, V = (torch.linalg.qr(torch.randn(k, 6, generator=g, dtype=torch.float64)).Q for k in (30, 6))
    X = (U * torch.logspace(0, -3.5, 6, dtype=torch.float64)) @ V.mT
    (got,) = polar_times([X[None]], torch.eye(6).double()[None], POLAR_EIGHT)
    assert torch.allclose(torch.linalg.svdvals(got[0]), torch.ones(6).double(), atol=7.5e-4)
    assert torch.allclose(got[0], polar_svd(X), atol=2e-3)


def test_float32_restarts_and_zero_gives_zero() -> None:
    Xs, rights = matrices(torch.float32)
    Xs[0][1] = 0.0
    wide, right = ([X.double() for X in Ys] for Ys in (Xs, rights))
    for a, b in zip(
        polar_times(Xs, torch.cat(rights), POLAR_EIGHT),
        polar_times(wide, torch.cat(right), POLAR_EIGHT),
        strict=True,
    ):
        assert a.dtype == torch.float32
        assert torch.allclose(a.double(), b, atol=2e-3)
    assert not polar_times(Xs, torch.cat(rights), POLAR_EIGHT)[0][1].any()
