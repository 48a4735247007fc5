"""Measuring weights of any size, or of none, ends in numbers and never in an exception."""

from __future__ import annotations

import math

import pytest
import torch

from lowrise.train.telemetry import _measure


@pytest.mark.filterwarnings("ignore:a .* matrix in:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 1.0, 1e30, 1e38, math.inf, math.nan])
@pytest.mark.parametrize("factored", [False, True])
def test_measurements(factored, scale, dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.rand(rows, 4, generator=draw, dtype=torch.float64) + 1 for rows in (9, 7))
    now = [(x * scale).to(dtype) for x in (left, right)]
    before = [x * 0.5 for x in now]
    second = (now[1], before[1]) if factored else (None, None)
    found = _measure((now[0], second[0]), (before[0], second[1]))
    if 1e-38 <= scale < 1e38:
        size = scale * scale if factored else scale
        exact = torch.linalg.svdvals((left @ right.T) if factored else left)
        assert found["weight_spectral_norm"] == pytest.approx(float(exact[0]) * size, rel=1e-4)
        assert found["stable_rank"] == pytest.approx(float((exact / exact[0]).square().sum()), rel=1e-4)
        assert 1.0 <= found["effective_rank"] <= 4.0
    elif not math.isfinite(scale):
        assert math.isnan(found["weight_spectral_norm"])
