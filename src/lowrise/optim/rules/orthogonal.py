"""What rules of orthogonal updates choose by option: how a matrix is orthogonalized, in which dtype, and how
the learning rate depends on its shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.linalg.polar import newton_schulz_each, polar_express_each, polar_svd
from lowrise.linalg.polar_iteration import segment_flops
from lowrise.linalg.precision import multiplies_fast_in_bfloat16

Ortho = Literal["ns5", "pe", "svd"]
NsDtype = Literal["auto", "fast", "bfloat16", "float32", "float64"]
ShapeRate = Literal["match_rms_adamw", "original", "spectral", "none"]

POLAR_EXPRESS_STEPS = 7
NS_DTYPES: dict[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


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
    return iteration_flops(m, n, POLAR_EXPRESS_STEPS if options["ortho"] == "pe" else options["ns_steps"])


def iteration_flops(m: int, n: int, steps: int) -> int:
    """FLOPs of so many odd quintics on an m x n matrix in the plain form: S = X^T X, S S, X P each."""
    return segment_flops(min(m, n), max(m, n), [1] * steps)


def iteration_dtype(choice: str, momentum: Tensor) -> torch.dtype:
    """The dtype of Newton-Schulz. "auto": bfloat16 on CUDA unless the weights are float64, else the
    momentum's. "fast": bfloat16 wherever its products are the faster ones.
    """
    if choice in NS_DTYPES:
        return NS_DTYPES[choice]
    kind = momentum.device.type
    narrow = kind == "cuda" or (choice == "fast" and multiplies_fast_in_bfloat16(kind))
    return torch.bfloat16 if narrow and momentum.dtype != torch.float64 else momentum.dtype


def check_newton_schulz(who: str, group: Mapping[str, Any]) -> None:
    """Raise `UsageError` for options that Newton-Schulz cannot run with."""
    if group["ns_steps"] < 1:
        raise UsageError(f"{who} has ns_steps = {group['ns_steps']}; at least 1 is needed (5 as published).")
    if len(group["ns_coefficients"]) != 3:
        raise UsageError(
            f"{who} has ns_coefficients = {group['ns_coefficients']}; give the three numbers a, b, c."
        )


def shape_rate(m: int, n: int, rule: str) -> float:
    """By what the learning rate of an m x n matrix is multiplied.

    "match_rms_adamw": 0.2 sqrt(max(m, n)) (Moonlight, arXiv 2502.16982); "original": sqrt(max(1, m/n))
    (KellerJordan/Muon); "spectral": sqrt(m/n) (microsoft/dion); "none": 1.
    """
    if rule == "match_rms_adamw":
        return 0.2 * math.sqrt(max(m, n))
    return {"original": math.sqrt(max(1.0, m / n)), "spectral": math.sqrt(m / n), "none": 1.0}[rule]
