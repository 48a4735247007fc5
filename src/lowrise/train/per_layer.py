"""The update of the training loop with `train.per_layer`: matrices move within the last backward pass.

1. all micro-batches but the last: forward, backward, gradients accumulate
2. the last: forward; with the loss of the whole batch known, and not finite, the update is skipped
3. its backward pass moves each unit when its gradient is complete (`lowrise.optim.per_layer`)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from lowrise.optim import Optimizer, step_in_backward


@dataclass(frozen=True)
class StepResult:
    """Loss and gradient norm of a batch, and what the optimizer did with it."""

    loss: float
    grad_norm: float
    moved: bool
    """Whether anything was moved."""
    left_alone: int = 0
    """Units whose gradient was not finite or too large, where others were moved."""
    seconds: float = 0.0
    """Time that the optimizer took, on a CPU."""


def step_per_layer(losses: Iterator[Tensor], passes: int, optimizer: Optimizer) -> StepResult:
    """One update from `passes` losses (0-dim, each with its graph) whose sum is the batch's mean loss.

    The gradient norm is NaN, not measured, where the loss is not finite.
    """
    total: Tensor | None = None
    for _ in range(passes - 1):
        part = next(losses)
        part.backward()
        total = part.detach() if total is None else total + part.detach()
    last = next(losses)
    loss = float(last.detach() if total is None else total + last.detach())
    if not math.isfinite(loss):
        return StepResult(loss, math.nan, moved=False)
    with step_in_backward(optimizer) as moved:
        last.backward()
    all_left = moved.units == 0
    return StepResult(
        loss,
        moved.grad_norm,
        moved=not all_left,
        left_alone=0 if all_left else moved.left_alone,
        seconds=moved.seconds,
    )
