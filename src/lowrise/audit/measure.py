"""Every matrix of a model, measured from its singular values.

The matrices are those of spectral telemetry (`train/telemetry.py`): a factored map by its factors, a dense
one and one with a dense part (LoRA's W0, SLTrain's S) as a whole; embeddings and head are left out. With an
activation between the factors (CoLA) the values are those of A B^T without it, and no smaller rank follows
from them.

  rank           columns of the factors, or min(m, n)
  energy rank    the least k with s_1^2 + ... + s_k^2 at least the asked share of all
  wasted rank    rank - energy rank
  spike          s_1 / s_2
  balance        ||A||_F / ||B||_F of W = A B^T
  condition      the larger of s_1 / s_r of A and of B
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowrise.layers.base import LowRankLayer
from lowrise.layers.dense import dense_weight, head_and_embedding_weights
from lowrise.linalg import energy_count, product_singular_values, singular_values
from lowrise.linalg.solvers import svdvals
from lowrise.linalg.spectrum import effective_rank, stable_rank
from lowrise.train.telemetry import matrices_of


@dataclass(frozen=True, kw_only=True)
class Audited:
    """One matrix; None: not defined (no factors, a second singular value of zero), or not finite."""

    name: str
    rows: int
    columns: int
    rank: int
    factored: bool
    linear: bool
    """False: an activation lies between its factors."""
    parameters: int
    """That its layer stores, biases left out."""
    finite: bool = True
    spectral_norm: float | None = None
    stable_rank: float | None = None
    effective_rank: float | None = None
    energy_rank: int | None = None
    wasted_rank: int | None = None
    spike: float | None = None
    balance: float | None = None
    condition: float | None = None
    parameters_at_energy: int | None = None
    """As two factors of the energy rank, where these are fewer."""
    singular_values: tuple[float, ...] = ()


@torch.no_grad()
def audit(model: nn.Module, energy: float) -> list[Audited]:
    """All matrices of a model on the CPU, in its order."""
    return [_audited(name, module, factors, energy) for name, module, factors in _matrices(model)]


def _matrices(model: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[Tensor, Tensor | None]]]:
    outside = head_and_embedding_weights(model)
    dense = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if dense_weight(module) is not None and id(module.weight) not in outside
    }
    return matrices_of(model, dense)


def _audited(name: str, module: nn.Module, factors: tuple[Tensor, Tensor | None], energy: float) -> Audited:
    left, right = factors
    rows, columns = left.shape[0], left.shape[1] if right is None else right.shape[0]
    rank = min(rows, columns) if right is None else left.shape[1]
    form = module.factored_form() if isinstance(module, LowRankLayer) else None
    linear = form is None or form.activation == "none"
    bias = getattr(module, "bias", None)
    parameters = sum(p.numel() for p in module.parameters() if p is not bias)
    facts: dict[str, Any] = {
        "name": name,
        "rows": rows,
        "columns": columns,
        "rank": rank,
        "factored": right is not None,
        "linear": linear,
        "parameters": parameters,
    }
    if not all(torch.isfinite(t).all() for t in factors if t is not None):
        return Audited(**facts, finite=False)
    wide = left.double()
    s = singular_values(wide) if right is None else product_singular_values(wide, right.double())
    values = s.tolist()
    needed = energy_count(s, energy)
    balance, condition = _of_factors(module)
    at_energy = min(parameters, needed * (rows + columns)) if linear else parameters
    return Audited(
        **facts,
        spectral_norm=values[0],
        stable_rank=stable_rank(values),
        effective_rank=effective_rank(values),
        energy_rank=needed,
        wasted_rank=rank - needed,
        spike=values[0] / values[1] if len(values) > 1 and values[1] > 0 else None,
        balance=balance,
        condition=condition,
        parameters_at_energy=at_energy,
        singular_values=tuple(values),
    )


def _of_factors(module: nn.Module) -> tuple[float | None, float | None]:
    """Balance and condition of a layer with two factors, A (m x r) and B (n x r)."""
    if not isinstance(module, LowRankLayer) or len(module.role_parameters()) != 2:
        return None, None  # dense; U, s and V, of which two are orthonormal
    A, B = (p.detach().double() for p in module.role_parameters())
    norms = float(torch.linalg.vector_norm(A)), float(torch.linalg.vector_norm(B))
    balance = norms[0] / norms[1] if norms[1] > 0 else None
    ends = [(float(s[0]), float(s[-1])) for s in (svdvals(A), svdvals(B))]
    condition = max(s / e for s, e in ends) if all(e > 0 for _, e in ends) else None
    return balance, condition
