"""RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, the mean in float32 (float64 if x is).

    Kept for the backward pass are x, which the residual stream keeps anyway, and one number a token.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # the compiler chooses by itself what to keep
            return plain_rms_norm(x, self.weight, self.eps)[0]
        y: Tensor = _RMSNorm.apply(x, self.weight, self.eps)[0]
        return y

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


class _RMSNorm(torch.autograd.Function):
    """y = w s with s = x c, c = (mean(x^2) + eps)^(-1/2); operations and bits of the backward pass are those
    of autograd's own, but s is formed again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return plain_rms_norm(x, weight, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        x, weight, ctx.eps = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, weight, output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, c = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again: c depends on x
            c = _inverse_rms(_wide(x), ctx.eps)
        wide = _wide(x)
        to_x = to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = (g * (wide * c).to(x.dtype)).sum_to_size(weight.shape)
        if ctx.needs_input_grad[0]:
            g = (g * weight).to(wide.dtype)  # of s
            to_c = (g * wide).sum(-1, keepdim=True)
            through_c = -0.5 * to_c * c.pow(3) / x.shape[-1]  # of x^2
            to_x = (2 * through_c * wide).add_(g * c).to(x.dtype)
        return to_x, to_weight, None


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y = w s and c, one number for each vector, in the wide type. Autograd keeps s and a wide x too."""
    wide = _wide(x)
    c = _inverse_rms(wide, eps)
    return weight * (wide * c).to(x.dtype), c


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _inverse_rms(wide: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
