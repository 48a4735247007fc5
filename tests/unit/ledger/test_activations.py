"""Planned activations against the storages that autograd keeps, for every layer, mode and precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from lowrise.layers import LAYERS, LatentLayer, LowRankLayer
from lowrise.ledger.activations import plan_activations
from lowrise.model import Llama, LlamaConfig, build_model

B, L = 2, 32


def built(layer: str, preset: str = "nano", **overrides: Any) -> Llama:
    config = LlamaConfig.preset(preset, vocab_size=50, **{"num_heads": 4, **overrides})
    model = build_model(config, layer=layer, rank=None if layer == "dense" else 8)
    for module in model.modules():
        if isinstance(module, LowRankLayer):
            module.before_update(1, 100)  # a guide takes part
    return model


def kept_bytes(model: Llama, autocast: bool, chunk: int | None = 2048) -> int:
    """Unique storages that the graph keeps from the forward pass; parameters and buffers left out."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is used twice

    def pack(t: Tensor) -> Tensor:
        alive.append(t)
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    tokens = torch.randint(50, (B, L))
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        loss = model(tokens, tokens, chunk=chunk)
    assert loss.requires_grad
    return sum(kept.values())


def grouped_heads_are_fused() -> bool:
    """Whether this torch's attention on a CPU, as torch itself chooses it, forms no L x L probabilities."""
    q, k = torch.zeros(B, 4, L, 8), torch.zeros(B, 2, L, 8)
    chosen = torch._fused_sdp_choice(q, k, k, is_causal=True, enable_gqa=True)
    return chosen != SDPBackend.MATH.value


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", ["none", "block", "latents"])
@pytest.mark.parametrize("layer", ["dense", *LAYERS])
@pytest.mark.parametrize(
    "shape",
    [{}, {"num_kv_heads": 2, "mlp_activation": "none"}, {"preset": "tiny"}],
    ids=["nano", "grouped", "tiny"],
)
def test_kept_bytes_are_those_that_autograd_keeps(
    layer: str, recompute: str, autocast: bool, shape: dict[str, Any]
) -> None:
    if recompute == "latents" and not issubclass(LAYERS.get(layer, nn.Linear), LatentLayer):
        pytest.skip("the layer has no latents")
    if recompute == "none" and "num_kv_heads" in shape and not grouped_heads_are_fused():
        pytest.skip(f"torch {torch.__version__} has no fused attention of grouped heads on a CPU")
    model = built(layer, **shape, recompute=recompute)
    planned = plan_activations(model, L, sequences=B, autocast=autocast)
    assert planned.kept == pytest.approx(kept_bytes(model, autocast), rel=0.01)
