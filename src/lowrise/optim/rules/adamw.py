"""The AdamW update as a pure function, in two forms that differ in the place of eps and of weight decay.

Form "torch" (Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2, as in torch.optim). Per parameter, all
elementwise, t = number of this update from 1:

1. p <- p (1 - lr wd)
2. m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g g
3. p <- p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

Form "hf" (the AdamW that transformers used to have, on which GaLore, Fira, APOLLO and GWT build): eps is
added to the uncorrected root, and the decay comes last. Dividing numerator and denominator by
sqrt(1 - b2^t), this is form "torch" with eps / sqrt(1 - b2^t) for eps, and with step 1 after step 3.

Contiguous tensors go through torch's fused kernel, which reads and writes each element once (six times faster
than the list operations on a CPU); weights narrower than their moments as copies in the moments' dtype, which
are rounded back once. All others go through list operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lowrise.linalg.precision import in_dtypes

Form = Literal["torch", "hf"]

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
    steps: Sequence[float] | Sequence[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    form: Form = "torch",
) -> None:
    """Update `params`, `exp_avgs`, `exp_avg_sqs` in place; `grads` have the moments' dtype and are only read.

    `steps` are the numbers of this update, from 1; form "torch" over full-precision tensors takes 0-dim
    tensors, too, which `torch.compile` needs. Parameters narrower than their moments are updated in the
    moments' dtype and rounded once: in bfloat16 a factor 1 - lr wd of its own would round to 1.
    """
    members = list(zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True))
    kinds: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for member in members:
        x, t = member[0], member[4] if form == "hf" else 0.0  # the fused kernel takes one eps a call
        kinds.setdefault((_fusible(*member[:4]), t, x.device, x.dtype), []).append(member)
    for (fusible, t, *_), same in kinds.items():
        p, g, m, v, numbers = map(list, zip(*same, strict=True))
        effective_eps = eps / math.sqrt(1.0 - betas[1] ** t) if form == "hf" and eps else eps
        update = _fused_ if fusible else _foreach_
        update(p, g, m, v, numbers, lr, betas, effective_eps, weight_decay, form == "hf")


def adam_moments_(
    exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor], grads: list[Tensor], betas: tuple[float, float]
) -> None:
    """Step 2 in place, with list operations; `grads` have the moments' dtype and are only read."""
    b1, b2 = betas
    torch._foreach_lerp_(exp_avgs, grads, 1.0 - b1)
    torch._foreach_mul_(exp_avg_sqs, b2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1.0 - b2)


def adam_denominators(exp_avg_sqs: list[Tensor], eps: float) -> list[Tensor]:
    """sqrt(v) + eps, the root uncorrected, in new tensors."""
    denominators = list(torch._foreach_sqrt(exp_avg_sqs))
    torch._foreach_add_(denominators, eps)
    return denominators


def _fusible(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> bool:
    """The kernel walks over raw memory: all four must have one shape, device and layout, and all but the
    parameter, which may be widened first, one dtype.
    """
    return p.device.type in ("cpu", "cuda", "meta") and all(
        x.shape == p.shape and x.device == p.device and x.is_contiguous() and x.dtype in (m.dtype, own)
        for x, own in ((p, p.dtype), (g, m.dtype), (m, m.dtype), (v, m.dtype))
    )


def _fused_(
    p: list[Any], g: list[Any], m: list[Any], v: list[Any], steps: list[Any],
    lr: float, betas: tuple[float, float], eps: float, decay: float, decay_last: bool,
) -> None:  # fmt: skip
    """torch's fused kernel. It reads the number of the update on the device: one number for all parameters
    that have the same.
    """
    device = p[0].device
    if isinstance(steps[0], Tensor):
        counters = [t.to(device, non_blocking=True) for t in steps]
    else:
        numbers = {t: torch.full((), t, dtype=torch.float32, device=device) for t in set(steps)}
        counters = [numbers[t] for t in steps]
    targets = in_dtypes(p, [y.dtype for y in m])
    torch._fused_adamw_(
        targets, g, m, v, [], counters,
        lr=lr, beta1=betas[0], beta2=betas[1], weight_decay=0.0 if decay_last else decay, eps=eps,
        amsgrad=False, maximize=False,
    )  # fmt: skip
    if decay_last and decay:
        torch._foreach_mul_(targets, 1.0 - lr * decay)
    _rounded_back_(p, targets)


def _foreach_(
    p: list[Any], g: list[Any], m: list[Any], v: list[Any], steps: list[Any],
    lr: float, betas: tuple[float, float], eps: float, decay: float, decay_last: bool,
) -> None:  # fmt: skip
    """The same with list operations, for parameters narrower than their moments and for other layouts."""
    b1, b2 = betas
    adam_moments_(m, v, g, betas)
    denominators = torch._foreach_sqrt(v)
    torch._foreach_div_(denominators, [math.sqrt(1.0 - b2**t) for t in steps])
    torch._foreach_add_(denominators, eps)
    step_sizes = [-lr / (1.0 - b1**t) for t in steps]

    targets = in_dtypes(p, [y.dtype for y in m])
    if decay and not decay_last:
        torch._foreach_mul_(targets, 1.0 - lr * decay)
    torch._foreach_addcdiv_(targets, m, denominators, step_sizes)
    if decay and decay_last:
        torch._foreach_mul_(targets, 1.0 - lr * decay)
    _rounded_back_(p, targets)


def _rounded_back_(p: list[Any], targets: list[Any]) -> None:
    """What was computed in copies goes back into the parameters."""
    narrow = [(x, target) for x, target in zip(p, targets, strict=True) if x is not target]
    if narrow:
        torch._foreach_copy_([x for x, _ in narrow], [target for _, target in narrow])
