"""The gated product of SwiGLU (Shazeer 2020, arXiv 2002.05202)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up for equal shapes, silu(x) = x sigmoid(x). Autograd keeps `gate` and `up` alone."""
    if torch.compiler.is_compiling():  # the compiler chooses by itself what to keep
        return F.silu(gate) * up
    product: Tensor = _SwiGLU.apply(gate, up)
    return product


class _SwiGLU(torch.autograd.Function):
    """Operations and bits of the backward pass are those of autograd's own; silu(gate) is formed again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate).mul_(up)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        gate, up = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again, which torch's kernel cannot be
            s = torch.sigmoid(gate)
            return g * up * s * (1 + gate * (1 - s)), g * F.silu(gate)
        wants_gate, wants_up = ctx.needs_input_grad
        to_up = F.silu(gate).mul_(g) if wants_up else None
        if not wants_gate:
            return None, to_up
        to_gate = g * up
        torch.ops.aten.silu_backward.grad_input(to_gate, gate, grad_input=to_gate)
        return to_gate, to_up
