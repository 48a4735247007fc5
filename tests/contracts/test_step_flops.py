"""The FLOPs that are planned for an optimizer's step, beside the matrix products that torch counts in one.

Plans state a formula (Newton-Schulz by its plain form, arithmetic on elements included), so they are never
below what is multiplied; forms that save products (on the Gram matrix) stay below the plan.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lowrise.config import load
from lowrise.layers import LowRankLayer
from lowrise.methods import METHODS
from lowrise.runs.build import build_optimizer, model_from


@pytest.mark.parametrize("method", METHODS)
def test_no_step_multiplies_more_than_is_planned(method: str) -> None:
    config = load(None, {"method": method, "model.preset": "nano"})
    model = model_from(config, 300, torch.device("cpu"))
    optimizer = build_optimizer(config, model)
    for module in model.modules():
        if isinstance(module, LowRankLayer):
            module.before_update(1, 100)
    for _ in range(2):  # the first sets up bases
        for p in model.parameters():
            p.grad = torch.randn_like(p) if p.requires_grad else None
        with FlopCounterMode(display=False) as counter:
            optimizer.step()
    planned = optimizer.step_flops()
    assert counter.get_total_flops() <= planned
    if method == "swan":  # nothing but products, in their plain form
        assert counter.get_total_flops() == pytest.approx(planned, rel=0.02)
