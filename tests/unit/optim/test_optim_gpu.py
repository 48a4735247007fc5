"""On a CUDA device: a step never waits for it, and Spectron's certificate holds there too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowrise.optim import (
    GWT,
    SCALE,
    SWAN,
    AdamW,
    Dion2,
    LoRAMuon,
    Muon,
    NorMuon,
    Optimizer,
    SinkGD,
    Spectron,
    StableSPAM,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("build", "options"),
    [
        (AdamW, {}),
        (AdamW, {"decay": "product", "weight_decay": 0.1}),
        (Muon, {}),
        (Spectron, {}),
        (Spectron, {"variant": "certified", "weight_decay": 0.1}),
        (LoRAMuon, {}),
        (LoRAMuon, {"bound": "whole", "rebalance_every": 2, "weight_decay": 0.1}),
        (LoRAMuon, {"root": "ns7", "msign": "polar8", "decay": "product", "weight_decay": 0.1}),
    ],
)
def test_no_step_waits_for_the_device(build: type[Optimizer], options: dict, dtype: torch.dtype) -> None:
    factors = [nn.Parameter(torch.randn(k, 16, device="cuda", dtype=dtype)) for k in (64, 48) * 3]
    norm = nn.Parameter(torch.ones(64, device="cuda", dtype=dtype))
    groups = [{"params": factors, "role": "factors"}, {"params": [norm], "role": "other"}]
    expect_no_wait(build(groups, lr=0.01, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("role", ["matrix", "factors"])
@pytest.mark.parametrize("build", [AdamW, Muon, Spectron])
def test_no_step_of_norm_fixed_weights_waits(build: type[Optimizer], role: str, dtype: torch.dtype) -> None:
    """After the first, which looks for weights that are zero."""
    if role not in build.ball_roles & build.roles:
        pytest.skip("its rule is for pairs")
    params = [nn.Parameter(torch.randn(k, 16, device="cuda", dtype=dtype)) for k in (64, 48) * 3]
    expect_no_wait(build([{"params": params, "role": role, "hyperball": True}], lr=0.01))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("build", "options"),
    [
        (GWT, {}),
        (SWAN, {}),
        (SinkGD, {}),
        (SinkGD, {"target": "muon"}),
        (SCALE, {}),
        (NorMuon, {}),
        (Dion2, {}),
        (Dion2, {"shards": 2, "ortho": "pe"}),
        (StableSPAM, {"reset_every": 2}),
    ],
)
def test_no_step_of_a_dense_method_waits_for_the_device(
    build: type[Optimizer], options: dict, dtype: torch.dtype
) -> None:
    shapes = {"matrix": [(64, 48), (48, 64), (64, 48)], "embedding": [(90, 64)], "head": [(90, 64)]}
    groups = [
        {"params": [nn.Parameter(torch.randn(s, device="cuda", dtype=dtype)) for s in listed], "role": role}
        for role, listed in shapes.items()
    ]
    expect_no_wait(build(groups, lr=0.01, **options))


def expect_no_wait(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn_like(p)
    optimizer.step()  # the first call may set up libraries
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("state_format", ["bfloat16", "8bit"])
def test_compressed_moments_wait_for_nothing_and_draw_the_same_as_on_the_cpu(state_format: str) -> None:
    torch.manual_seed(0)
    start, grads = torch.randn(64, 71), [torch.randn(64, 71) for _ in range(3)]
    states = []
    for device in ("cpu", "cuda"):
        p = nn.Parameter(start.to(device))
        optimizer = AdamW([{"params": [p], "role": "matrix", "state_format": state_format}], lr=0.0)
        for t, grad in enumerate(grads):
            p.grad = grad.to(device)
            if t and device == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            try:
                optimizer.step()
            finally:
                if device == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
        states.append({k: tensor.cpu() for k, tensor in optimizer.state[p].items()})
    for key in states[0]:
        # The draws are equal; a moment that was computed with another rounding may fall to the other side.
        assert (states[0][key] == states[1][key]).float().mean() > 0.99, key


def test_certificate_with_tf32_switched_on_by_the_user() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        A, B = (nn.Parameter(3 * torch.randn(k, 64, device="cuda") / 16) for k in (512, 256))
        optimizer = Spectron(
            [{"params": [A, B], "role": "factors"}], lr=0.05, variant="certified", step_size="tight"
        )
        for _ in range(30):
            A.grad, B.grad = -A.detach(), -B.detach()
            before = A.detach().double() @ B.detach().double().T
            optimizer.step()
            change = A.detach().double() @ B.detach().double().T - before
            assert torch.linalg.matrix_norm(change, 2).item() <= 0.05 * (1 + 1e-9)  # float64 measurement
    finally:
        torch.set_float32_matmul_precision("highest")
