"""Per-layer updates: every unit moves within the backward pass, and its gradients are freed at once (Lv et
al. 2023, LOMO, arXiv 2306.09782; "per-layer weight updates" of GaLore, arXiv 2403.03507).

```python
with step_in_backward(optimizer) as moved:
    loss.backward()
scheduler.step()
```

For each unit of the optimizer (a parameter, a pair A, B or a triple U, s, V):

1. a gradient is complete: torch calls the parameter's post-accumulate hook
2. when that was the last of the unit, n = ||its gradients||_F, in the dtype of the state
3. if n is below the limit of `guard.py` (1.8e16 in float32), the rule of the optimizer moves the unit: the
   very function that `step()` calls, with the options (lr, ...) that the unit's group has at this moment.
   Else the unit is left alone, and counted.
4. the gradients of the unit are dropped

When the block ends, units whose gradients are not all of this pass (a part that the last micro-batch did not
use) go through 2 to 4, and `optimizer.step()` finds nothing left to move: its hooks and learning-rate
schedulers see one step an update. There is one optimizer, one counter for each unit and one source of
learning rates.

What differs from `loss.backward(); optimizer.step()`. Matrices of one shape are moved one after the other and
not in one batch, which may round differently. A gradient that is not finite stops its own unit alone in the
training loop too, as the others have moved before it is known. Step 3 waits for the device once a unit.

Memory: with one backward pass an update, the gradients of one unit or a few are alive at a time. Under
accumulation the passes before the last one run outside of the block and keep all gradients: then the peak is
that of the ordinary loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lowrise.errors import UsageError
from lowrise.optim.engine.base import Optimizer
from lowrise.optim.engine.options import parameter_name
from lowrise.optim.engine.units import units_of


@dataclass
class Moved:
    """What one update did; complete when the block of `step_in_backward` has ended."""

    units: int = 0
    """Units that were moved."""
    left_alone: int = 0
    """Units that were not, as their gradient was not finite or too large."""
    squared_norm: float = 0.0
    seconds: float = 0.0
    """Time in steps 2 to 4; on a GPU that is mostly waiting for the backward pass."""

    @property
    def grad_norm(self) -> float:
        """Global norm of all gradients of the update, not finite where one was not."""
        return math.sqrt(self.squared_norm) if self.squared_norm >= 0 else math.nan


@contextmanager
def step_in_backward(optimizer: Optimizer) -> Iterator[Moved]:
    """Within the block one backward pass moves every unit of `optimizer` as its gradients arrive.

    Set learning rates before the block. Global-norm clipping and `GradScaler` are not possible: both need all
    gradients before the first unit moves. Raises `UsageError` for another class of optimizer, float16
    parameters, several processes, and a second backward pass in the block.
    """
    _check(optimizer)
    moved = Moved()
    units = [(group, params) for group in optimizer.param_groups for params in units_of(group)]
    handles: list[RemovableHandle] = []
    try:
        for group, params in units:
            handles += _watch(optimizer, group, params, moved)
        yield moved
    finally:
        for handle in handles:
            handle.remove()
    for group, params in units:
        _move_and_free(optimizer, group, params, moved)
    optimizer.step()


def _watch(
    optimizer: Optimizer, group: dict[str, Any], params: tuple[Tensor, ...], moved: Moved
) -> list[RemovableHandle]:
    """Hooks on the parameters of one unit that move it when the last gradient has arrived."""
    trained = [p for p in params if p.requires_grad]
    waiting = {id(p) for p in trained}

    def arrived(param: Tensor) -> None:
        if not waiting:
            i = next(i for i, p in enumerate(group["params"]) if p is param)
            raise UsageError(
                f"a second gradient of {parameter_name(group, i)} arrived after it had been moved: let "
                "step_in_backward see one backward pass (under accumulation the last one), without reentrant "
                "activation checkpointing (use_reentrant=False)."
            )
        waiting.discard(id(param))
        if not waiting:
            _move_and_free(optimizer, group, params, moved)

    hook: Callable[[Tensor], None] = arrived
    return [p.register_post_accumulate_grad_hook(hook) for p in trained]


def _move_and_free(
    optimizer: Optimizer, group: dict[str, Any], params: tuple[Tensor, ...], moved: Moved
) -> None:
    """Steps 2 to 4 for one unit; nothing where it has no gradient."""
    started = time.perf_counter()
    done = optimizer.move_alone(group, params)
    if done is None:
        return
    moved.squared_norm += done.grad_norm * done.grad_norm
    moved.units += done.moved
    moved.left_alone += not done.moved
    for param in params:
        param.grad = None
    moved.seconds += time.perf_counter() - started


def _check(optimizer: Optimizer) -> None:
    if not isinstance(optimizer, Optimizer):
        raise UsageError(
            f"step_in_backward takes an optimizer of lowrise.optim, not a "
            f"{type(optimizer).__module__}.{type(optimizer).__qualname__}."
        )
    for group in optimizer.param_groups:
        for i, param in enumerate(group["params"]):
            if param.dtype == torch.float16:
                raise UsageError(
                    f"{parameter_name(group, i)} is float16, whose gradients need GradScaler, and that works "
                    "on all gradients after the backward pass: use bfloat16 or float32, or optimizer.step()."
                )
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise UsageError(
            f"step_in_backward updates a parameter before its gradient is averaged over the "
            f"{distributed.get_world_size()} processes of this run: use optimizer.step()."
        )
