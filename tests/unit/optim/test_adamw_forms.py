"""The two forms of the AdamW rule, and the fused kernel against the list operations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lowrise.optim.rules import adamw as adamw_rule
from lowrise.optim.rules.adamw import adamw_update_


def plain(p: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, lr: float, eps: float, wd: float) -> None:
    """Form "hf" as galore.md writes it: steps 4 to 9 with R = G."""
    m.mul_(0.9).add_(g, alpha=0.1)
    v.mul_(0.99).add_(g * g, alpha=0.01)
    p.sub_(lr * math.sqrt(1 - 0.99**t) / (1 - 0.9**t) * m / (v.sqrt() + eps))
    p.mul_(1 - lr * wd)


def tensors(count: int, dtype: torch.dtype) -> list[Tensor]:
    g = torch.Generator().manual_seed(count)
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in [(5, 4), (33,), ()]]


@pytest.mark.parametrize("fused", [True, False])
def test_form_hf_is_the_rule_of_the_dossier(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """eps of the size of the root and parameters at different counts: both would show in the other form."""
    if not fused:
        monkeypatch.setattr(adamw_rule, "_fusible", lambda *_: False)
    params, copies = tensors(1, torch.float64), tensors(1, torch.float64)
    moments = [[torch.zeros_like(p) for p in params] for _ in range(4)]
    for t in range(1, 6):
        grads = tensors(10 + t, torch.float64)
        numbers = [t, t + 3, t]
        adamw_update_(
            params, grads, moments[0], moments[1], numbers,
            lr=0.1, betas=(0.9, 0.99), eps=0.3, weight_decay=0.2, form="hf",
        )  # fmt: skip
        for p, g, m, v, k in zip(copies, grads, moments[2], moments[3], numbers, strict=True):
            plain(p, g, m, v, k, 0.1, 0.3, 0.2)
        for p, q in zip(params, copies, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-14)  # rounding of float64, other order


@pytest.mark.parametrize("form", ["torch", "hf"])
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_fused_and_list_operations_agree(form: str, layout: str) -> None:
    """Transposed gradients must not reach the kernel, which walks over raw memory."""
    results = []
    for dtype in (torch.float32, torch.float64):
        p, m, v = (
            torch.ones(6, 4, dtype=dtype),
            torch.zeros(6, 4, dtype=dtype),
            torch.zeros(6, 4, dtype=dtype),
        )
        for t in (1, 2, 3):
            g = torch.arange(24.0, dtype=dtype).reshape(6, 4).sin() * t
            g = g.mT.contiguous().mT if layout == "transposed" else g
            before = g.clone()
            adamw_update_(
                [p], [g], [m], [v], [t], lr=0.1, betas=(0.9, 0.99), eps=1e-3, weight_decay=0.1, form=form
            )
            assert torch.equal(g, before)
        results.append(p.double())
    # float32 rounding of a handful of operations on values of order 1
    torch.testing.assert_close(*results, rtol=0, atol=2e-6)


def test_bfloat16_parameters_with_float32_moments_are_rounded_once() -> None:
    p = torch.full((64,), 1.0, dtype=torch.bfloat16)
    m, v = torch.zeros(64), torch.zeros(64)
    adamw_update_(
        [p], [torch.ones(64)], [m], [v], [1], lr=1e-3, betas=(0.9, 0.99), eps=0.0, weight_decay=0.1, form="hf"
    )
    assert torch.equal(p, torch.tensor((1.0 - 1e-3) * (1 - 1e-4)).bfloat16().expand(64))
