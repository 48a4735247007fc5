"""Spectral measurements of every matrix and of its last update, from factors in O((m + n) r^2).

For a factorized layer W = L R^T. With the factors before (L0, R0) and after (L1, R1) an update,
    dW = L1 R1^T - L0 R0^T = [dL, L0] [R1, dR]^T,   dL = L1 - L0, dR = R1 - R0,
a product of rank 2r whose terms do not cancel. Where the rank changed in between, dW is
[L1, -L0] [R1, R0]^T, whose rounding is that of W and not of dW. A dense matrix is measured by its own
singular values, and so is a layer with a dense part (LoRA's W0, SLTrain's S).

  weight_spectral_norm   s_1
  update_spectral_norm   s_1 of dW
  stable_rank            sum s_i^2 / s_1^2
  effective_rank         exp(entropy of s_i / sum s)   (Roy & Vetterli 2007)
  orthonormality_error   largest entry of |U^T U - I| and |V^T V - I|, where a layer has such factors
  rank                   number of columns, of a layer that may change it

Of N ranks each keeps and measures every N-th matrix; all ranks get all numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrise.distributed import World
from lowrise.distributed.sharding import whole_parameters
from lowrise.errors import UsageError
from lowrise.layers.base import AdaptiveRankLayer, LowRankLayer
from lowrise.linalg import product_singular_values, singular_values
from lowrise.linalg.spectrum import effective_rank, stable_rank

Factors = tuple[Tensor, Tensor | None]


KEYS = (
    "weight_spectral_norm",
    "update_spectral_norm",
    "stable_rank",
    "effective_rank",
    "orthonormality_error",
    "rank",
)


@dataclass(frozen=True)
class Snapshot:
    """Copies of the matrices that this rank measures: (L, R), or (W, None) for a dense one."""

    dense: set[str]
    """Names of weights that are matrices as they are."""
    matrices: dict[str, Factors]


def matrices_of(model: nn.Module, dense: set[str]) -> Iterator[tuple[str, nn.Module, Factors]]:
    """Every measured matrix with its module. Where ranks share its parameters by rows, they are whole until
    the next is asked for; all ranks must go through them together.
    """
    for name, module in model.named_modules():
        if isinstance(module, LowRankLayer):
            with whole_parameters(module, write=False):
                factors = module.spectral_factors()
                if factors is not None:
                    yield name, module, factors
                elif (weight := _dense_form(module)) is not None:
                    yield name, module, (weight, None)
        elif f"{name}.weight" in dense:
            with whole_parameters(module, write=False):
                yield name, module, (module.weight, None)


def _dense_form(layer: LowRankLayer) -> Tensor | None:
    try:
        return layer.dense()
    except UsageError:  # no linear map
        return None


@torch.no_grad()
def snapshot(model: nn.Module, dense: set[str], world: World) -> Snapshot:
    """Copy this rank's matrices before an update; `dense` names the weights that are matrices as they are."""
    matrices: dict[str, Factors] = {}
    for i, (name, _, (left, right)) in enumerate(matrices_of(model, dense)):
        if i % world.size == world.rank:
            matrices[name] = (left.detach().clone(), None if right is None else right.detach().clone())
    return Snapshot(dense, matrices)


@torch.no_grad()
def measure(model: nn.Module, before: Snapshot, world: World) -> dict[str, dict[str, float]]:
    """Measurements of every matrix, by its module's name, now that the model was updated."""
    names: list[str] = []
    numbers: list[float] = []
    for name, module, now in matrices_of(model, before.dense):
        names.append(name)
        if name not in before.matrices:
            numbers += [0.0] * len(KEYS)  # another rank's; what does not apply is NaN below
            continue
        values = _measure(now, before.matrices[name])
        if isinstance(module, AdaptiveRankLayer):
            values["orthonormality_error"] = module.orthonormality_error()
            if module.is_adaptive():
                values["rank"] = float(module.rank)
        numbers += [values.get(key, math.nan) for key in KEYS]
    rest = iter(world.total(*numbers))
    return {
        name: {key: value for key, value in zip(KEYS, rest, strict=False) if not math.isnan(value)}
        for name in names
    }


def _measure(now: Factors, before: Factors) -> dict[str, float]:
    (left, right), (left0, right0) = now, before
    if right is None or right0 is None:
        weight = singular_values(left)
        update = singular_values(left.float() - left0.float())
    else:
        left, right, left0, right0 = (t.float() for t in (left, right, left0, right0))
        weight = product_singular_values(left, right)
        if left.shape == left0.shape:
            update_left = torch.cat([left - left0, left0], dim=1)  # m x 2r
            update_right = torch.cat([right, right - right0], dim=1)  # n x 2r
        else:
            update_left, update_right = torch.cat([left, -left0], dim=1), torch.cat([right, right0], dim=1)
        update = product_singular_values(update_left, update_right)
    values = weight.double().tolist()
    return {
        "weight_spectral_norm": values[0],
        "update_spectral_norm": float(update[0]),
        "stable_rank": stable_rank(values),
        "effective_rank": effective_rank(values),
    }
