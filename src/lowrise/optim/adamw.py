"""AdamW, for every role: the full-rank baseline, and the optimizer of the "lowrank" method.

The rule and its source are in `rules/adamw.py`; factors and singular values are moved as plain tensors.
State per parameter, all of its shape: `exp_avg`, `exp_avg_sq` (2 elements an element), and `step`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from lowrise.optim.engine.base import Optimizer
from lowrise.optim.engine.other import update_by_adamw
from lowrise.optim.engine.units import Layout, Shape, Unit
from lowrise.optim.rules.adamw import ADAMW_FLOPS_PER_ELEMENT, adamw_layout


class AdamW(Optimizer):
    """AdamW with decoupled weight decay, equal to torch.optim.AdamW to rounding.

    betas (0.9, 0.95) are those of the language models in the papers we compare with (torch's default is
    0.999); weight decay is off unless asked for. FLOPs of a step: 14 an element.
    """

    roles: ClassVar[frozenset[str]] = frozenset({"matrix", "factors", "svd", "other"})
    by_rows = roles

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @classmethod
    def _state_layout(
        cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]
    ) -> tuple[Layout, ...]:
        return adamw_layout(shapes)

    def _update(self, group: dict[str, Any], units: list[Unit]) -> None:
        update_by_adamw(group, units)

    @classmethod
    def _unit_flops(cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> int:
        return ADAMW_FLOPS_PER_ELEMENT * sum(math.prod(shape) for shape in shapes)
