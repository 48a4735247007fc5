"""What rules of orthogonal updates choose by option: how a matrix is orthogonalized, and how the learning
rate depends on its shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lowrise.linalg.polar import newton_schulz_each, polar_express_each, polar_svd
from lowrise.linalg.polar_iteration import segment_flops

Ortho = Literal["ns5", "pe", "svd"]
ShapeRate = Literal["match_rms_adamw", "original", "spectral", "none"]

POLAR_EXPRESS_STEPS = 7


def orthogonalized(Xs: Sequence[Tensor], options: Mapping[str, Any], *, dtype: torch.dtype) -> list[Tensor]:
    """The polar factor of each X (m, n), nearly or exactly, by `options["ortho"]`; zero gives zero.

    "ns5": the quintic, `ns_steps` times from X / max(||X||_F, ns_eps), in `dtype`. "pe": Polar Express, seven
    steps. "svd": exactly; waits for the device.
    """
    if options["ortho"] == "svd":
        return [polar_svd(X) for X in Xs]
    if options["ortho"] == "pe":
        return polar_express_each(Xs, steps=POLAR_EXPRESS_STEPS)
    return newton_schulz_each(
        Xs,
        steps=options["ns_steps"],
        coefficients=options["ns_coefficients"],
        eps=options["ns_eps"],
        eps_rule="max",
        dtype=dtype,
    )


def orthogonal_flops(m: int, n: int, options: Mapping[str, Any]) -> int:
    """FLOPs of `orthogonalized`, the iterations in their plain form; by SVD an estimate for LAPACK."""
    p, q = min(m, n), max(m, n)
    if options["ortho"] == "svd":
        return 8 * p * p * q + 8 * p**3
    steps = POLAR_EXPRESS_STEPS if options["ortho"] == "pe" else options["ns_steps"]
    return segment_flops(p, q, [1] * steps)


def shape_rate(m: int, n: int, rule: str) -> float:
    """By what the learning rate of an m x n matrix is multiplied.

    "match_rms_adamw": 0.2 sqrt(max(m, n)) (Moonlight, arXiv 2502.16982); "original": sqrt(max(1, m/n))
    (KellerJordan/Muon); "spectral": sqrt(m/n) (microsoft/dion); "none": 1.
    """
    if rule == "match_rms_adamw":
        return 0.2 * math.sqrt(max(m, n))
    return {"original": math.sqrt(max(1.0, m / n)), "spectral": math.sqrt(m / n), "none": 1.0}[rule]
