"""Planned FLOPs, parameters and bytes against what torch counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from lowrise.errors import UsageError
from lowrise.layers import LAYERS, LatentLayer, param_groups
from lowrise.ledger import count_parameters, flops_per_token, plan_memory
from lowrise.model import LlamaConfig, build_model

B, L = 2, 32  # 64 tokens a pass: what a layer does once a pass comes out whole per token


def config(**overrides: object) -> LlamaConfig:
    return LlamaConfig.preset("nano", vocab_size=50, num_heads=4, **overrides)


@pytest.mark.parametrize("layer", ["dense", *LAYERS])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("recompute", ["none", "block", "latents"])
def test_flops_equal_torchs_count(layer: str, kv_heads: int, recompute: str) -> None:
    """With the math attention kernel, which does every product that the formula names, and checkpoints not
    cut short.
    """
    if recompute == "latents" and not issubclass(LAYERS.get(layer, nn.Linear), LatentLayer):
        pytest.skip("the layer has no latents")
    rank = None if layer == "dense" else 8
    model = build_model(config(num_kv_heads=kv_heads, recompute=recompute), layer=layer, rank=rank)
    planned = flops_per_token(model, L, sequences=B)
    tokens = torch.randint(50, (B, L))
    with sdpa_kernel(SDPBackend.MATH), set_checkpoint_early_stop(False):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(tokens)
        assert counter.get_total_flops() == planned.forward * B * L
        with FlopCounterMode(display=False) as counter:
            model(tokens).sum().backward()
        # A fresh layer has no guide in its forward pass; test_selfguided.py counts with one.
        assert counter.get_total_flops() == (planned.training - planned.guide) * B * L


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_chunked_loss_costs_what_the_plan_says(reduction: str) -> None:
    model = build_model(config())
    tokens = torch.randint(50, (B, L))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens, tokens, reduction=reduction, chunk=5).backward()
    assert counter.get_total_flops() == flops_per_token(model, L).training * B * L


def test_flops_by_hand() -> None:
    """The smallest sum one can do on paper: 60m, rank 128, sequence 256."""
    model = build_model(LlamaConfig.preset("60m"), layer="lowrank", rank=128, device="meta")
    planned = flops_per_token(model, 256)
    per_block = 4 * 128 * (512 + 512) + 3 * 128 * (512 + 1376)
    assert planned.linear == 2 * 8 * per_block == 2 * 9_994_240  # 9.99M factor elements (loro.md, section 1)
    assert planned.attention == 8 * 4 * 256 * 512
    assert planned.head == 2 * 32_000 * 512
    assert planned.training == 3 * planned.forward
    with pytest.raises(UsageError, match="at least 1 token, not 0"):
        flops_per_token(model, 0)


def test_parameter_counts_by_role() -> None:
    count = count_parameters(build_model(LlamaConfig.preset("60m"), layer="lowrank", rank=128, device="meta"))
    assert count.total == count.trainable == 42_770_944
    assert count.by_role == {
        "embedding": 16_384_000,
        "factors": 9_994_240,
        "other": 17 * 512,
        "head": 16_384_000,
    }
    assert count.non_embedding == 9_994_240 + 17 * 512
    tied = count_parameters(build_model(LlamaConfig.preset("60m", tie_embeddings=True), device="meta"))
    assert tied.total == 58_073_600 - 16_384_000
    assert tied.by_role["matrix"] == tied.non_embedding - 17 * 512


class TwoMoments:
    """An optimizer class as the ledger sees it: two elements of state for each of a matrix, in float32, none
    for anything else.
    """

    @classmethod
    def planned_state_bytes(
        cls,
        role: str,
        shapes: Sequence[tuple[int, ...]],
        options: Mapping[str, Any],
        *,
        dtype: torch.dtype,
    ) -> int:
        return 4 * 2 * sum(torch.Size(shape).numel() for shape in shapes) if role == "factors" else 0


def test_memory_plan() -> None:
    model = build_model(
        LlamaConfig.preset("60m"), layer="lowrank", rank=128, device="meta", dtype=torch.bfloat16
    )
    model.lm_head.requires_grad_(False)
    plan = plan_memory(model, param_groups(model, lr=1.0), TwoMoments)
    assert plan.weights_bytes == 2 * 42_770_944
    assert plan.gradients_bytes == 2 * (42_770_944 - 16_384_000)
    assert plan.state_bytes == 4 * 2 * 9_994_240
    assert plan.total_bytes == plan.weights_bytes + plan.gradients_bytes + plan.state_bytes


def test_planned_bytes_are_the_storage_that_exists() -> None:
    model = build_model(config(tie_embeddings=True), layer="lowrank", rank=8)
    model(torch.arange(8)[None], torch.arange(8)[None]).backward()
    plan = plan_memory(model, param_groups(model, lr=1.0), TwoMoments)
    weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    assert sum(weights.values()) == plan.weights_bytes
    assert sum(p.grad.untyped_storage().nbytes() for p in model.parameters() if p.grad is not None) == (
        plan.gradients_bytes
    )
