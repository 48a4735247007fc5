"""AdamW for every role, as a class; the arithmetic is shared by all optimizers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowrise.distributed.sharding import is_sharded
from lowrise.optim.engine.base import Optimizer
from lowrise.optim.engine.hyperball import BALL_ROLES, holds_norm, pairs_step_, step_
from lowrise.optim.engine.other import update_by_adamw
from lowrise.optim.engine.product_decay import Decay
from lowrise.optim.engine.units import BATCH_ELEMENTS, Layout, Shape, Unit, chunked, state_dtype
from lowrise.optim.rules.adamw import ADAMW_FLOPS_PER_ELEMENT, adamw_layout


class AdamW(Optimizer):
    """AdamW with decoupled weight decay, for every role: the full-rank baseline, and what trains plain
    factors.

    Source: Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2. Per parameter p with gradient g, all
    elementwise, t = number of this step from 1:

    1. p <- p (1 - lr wd)
    2. m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g g
    3. p <- p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

    Equal to torch.optim.AdamW to rounding. Factors and singular values are updated as plain tensors.

    State per parameter, all of its shape: `exp_avg` (m), `exp_avg_sq` (v), 2 elements per element, and
    `step`. Roles: all. FLOPs per step: 14 per element.

    Args:
        params: Groups of `lowrise.param_groups`, or parameters; `from_model` makes the groups by itself.
        lr: Learning rate; 1e-3 is torch's default.
        betas: Decay rates b1, b2 of the two moments; (0.9, 0.95) are those of the language models in the
            papers that we compare with, torch has (0.9, 0.999).
        eps: Added to the root of the second moment, after its bias correction.
        weight_decay: Decoupled weight decay wd of all parameters; off unless asked for (torch: 0.01).
        decay: What weight_decay does to factors. entries: A (1 - lr wd), B likewise; product: the Frobenius
            norm of A B^T decays, A - lr wd A B^T B and B - lr wd B A^T A. Other weights always by entries.

    Raises:
        UsageError: A group holds an option, role, shape or dtype that the rule cannot run with.
    """

    roles: ClassVar[frozenset[str]] = frozenset({"matrix", "factors", "svd", "other"})
    by_rows = roles
    ball_roles: ClassVar[frozenset[str]] = BALL_ROLES
    ball_by_rows: ClassVar[frozenset[str]] = frozenset({"matrix"})

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decay: Decay = "entries",
    ) -> None:
        super().__init__(params, self.options(locals()))

    @classmethod
    def _state_layout(
        cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]
    ) -> tuple[Layout, ...]:
        return adamw_layout(shapes)

    def _update(self, group: dict[str, Any], units: list[Unit]) -> None:
        if not holds_norm(group):
            update_by_adamw(group, units)
            return
        # Ranks that have other rows must meet with the same matrices, so theirs are not parted by size.
        ranks = self.ownership.ranks if is_sharded(group["params"][0]) else None
        most = BATCH_ELEMENTS if ranks is None else math.inf
        for part in chunked(units, lambda unit: unit.elements, most):
            moved = _changes(group, part)
            if group["role"] == "factors":
                pairs_step_(group, part, [(A, B) for A, B in moved])
            else:
                params, states = [unit.params[0] for unit in part], [unit.states[0] for unit in part]
                step_(group, params, [change for (change,) in moved], states, None, ranks)

    @classmethod
    def _unit_flops(cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> int:
        return ADAMW_FLOPS_PER_ELEMENT * sum(math.prod(shape) for shape in shapes)


def _changes(group: dict[str, Any], units: list[Unit]) -> list[tuple[Tensor, ...]]:
    """lr times the direction for the parameters of each unit: what the rule takes from zeros."""
    zeros = [tuple(torch.zeros_like(p, dtype=state_dtype(p)) for p in unit.params) for unit in units]
    at_zero = [replace(unit, params=params) for unit, params in zip(units, zeros, strict=True)]
    update_by_adamw({**group, "weight_decay": 0.0}, at_zero)
    torch._foreach_neg_([p for params in zeros for p in params])
    return zeros
