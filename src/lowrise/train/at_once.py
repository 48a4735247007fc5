"""The update of the training loop: all gradients, their sum over ranks, their norm, one optimizer step.

1. micro-batches: forward, backward, gradients accumulate; in the last backward pass they are summed over
   ranks (`lowrise.distributed.GradientSum`), and so is the loss
2. global gradient norm, clipped
3. if loss and norm are finite, the optimizer moves everything; where the norm, after clipping, is still too
   large for it, it leaves single units alone (`lowrise/optim/guard.py`)

Steps 2 and 3 work on sums, so all ranks decide and move alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from lowrise.distributed import GradientSum, clip_gradients_
from lowrise.optim import Optimizer
from lowrise.optim.guard import usable
from lowrise.optim.units import units_of
from lowrise.train.per_layer import StepResult


def step_at_once(
    losses: Iterator[Tensor],
    passes: int,
    model: nn.Module,
    optimizer: Optimizer,
    gradients: GradientSum,
    *,
    clip: float,
    synchronize: Callable[[], None] | None,
) -> StepResult:
    """One update from `passes` losses (0-dim, each with its graph), whose sum over passes and ranks is the
    batch's mean loss.

    `clip` 0: none. With `synchronize`, which waits for the device, the optimizer's time is measured.
    """
    total: Tensor | None = None
    for number, part in enumerate(losses, start=1):
        last = number == passes
        with gradients.over_ranks(_last_first(model, optimizer), part.device) if last else nullcontext():
            part.backward()
        total = part.detach() if total is None else total + part.detach()
    assert total is not None
    total = gradients.world.sum_(total)
    limit = clip or math.inf
    norm = clip_gradients_([p for group in optimizer.param_groups for p in group["params"]], limit)
    loss_value, norm_value = torch.stack([total.float(), norm.float()]).tolist()
    finite = math.isfinite(loss_value) and math.isfinite(norm_value)
    started = time.perf_counter()
    left_alone = units = 0
    if finite:
        known = min(norm_value, limit)
        before = optimizer.skipped_updates()
        optimizer.step(grad_norm=known)
        if not usable(known):
            left_alone, units = optimizer.skipped_updates() - before, _with_gradients(optimizer)
    if synchronize is not None:
        synchronize()
    seconds = time.perf_counter() - started if synchronize is not None else 0.0
    moved = finite and not (left_alone and left_alone == units)
    return StepResult(loss_value, norm_value, moved, left_alone if moved else 0, seconds)


def _with_gradients(optimizer: Optimizer) -> int:
    """Units of which a parameter has a gradient."""
    units = (unit for group in optimizer.param_groups for unit in units_of(group))
    return sum(any(p.grad is not None for p in unit) for unit in units)


def _last_first(model: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    """The optimizer's parameters in the order in which gradients come. Between forward and backward pass the
    model may hold gathered stand-ins for parameters that ranks share by rows: these are not among them.
    """
    members = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [p for p in reversed(list(model.parameters())) if id(p) in members]
