"""The AdamW update as a pure function (Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2, in torch.optim's
form).

Per parameter, all elementwise, t = number of this update from 1:

1. p <- p (1 - lr wd)
2. m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g g
3. p <- p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ADAMW_DEFAULTS: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-8}

# 1 decay, 3 first moment, 4 second moment, 1 root, 1 correction, 1 eps, 1 quotient, 2 scaled subtraction.
ADAMW_FLOPS_PER_ELEMENT = 14


def adamw_layout(shapes: tuple[tuple[int, ...], ...]) -> tuple[dict[str, tuple[int, ...]], ...]:
    """Two moments of the shape of the parameter."""
    return tuple({"exp_avg": shape, "exp_avg_sq": shape} for shape in shapes)


def adamw_update_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: Sequence[float],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Update `params`, `exp_avgs`, `exp_avg_sqs` in place; `grads` have the moments' dtype and are only read.

    `steps` are the numbers of this update, from 1. Parameters narrower than their moments are updated in the
    moments' dtype and rounded once: in bfloat16 a factor 1 - lr wd of its own would round to 1.
    """
    b1, b2 = betas
    torch._foreach_lerp_(exp_avgs, grads, 1.0 - b1)
    torch._foreach_mul_(exp_avg_sqs, b2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1.0 - b2)
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(denominators, [math.sqrt(1.0 - b2**t) for t in steps])
    torch._foreach_add_(denominators, eps)
    step_sizes = [-lr / (1.0 - b1**t) for t in steps]

    narrow = [i for i, (p, m) in enumerate(zip(params, exp_avgs, strict=True)) if p.dtype != m.dtype]
    targets = list(params)
    for i in narrow:
        targets[i] = params[i].to(exp_avgs[i].dtype)
    if weight_decay:
        torch._foreach_mul_(targets, 1.0 - lr * weight_decay)
    torch._foreach_addcdiv_(targets, exp_avgs, denominators, step_sizes)
    for i in narrow:
        params[i].copy_(targets[i])
