"""AdamW and Muon against torch's own, and against the plain one-matrix version."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference.spectral_simple import SimpleMuon
from torch import nn

from lowrise.linalg import polar_svd
from lowrise.linalg.precision import multiplies_fast_in_bfloat16
from lowrise.optim import AdamW, Muon
from lowrise.optim.rules import orthogonal


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adamw_equals_torch_in_float64(weight_decay: float) -> None:
    params = [nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in [(5, 4), (7,), ()]]
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    options = {"lr": 0.03, "betas": (0.8, 0.9), "eps": 1e-5, "weight_decay": weight_decay}
    ours, theirs = AdamW(params, **options), torch.optim.AdamW(copies, **options)
    for t in range(8):
        for p, q in zip(params, copies, strict=True):
            if t == 3 and p.ndim == 1:  # a counter that stands still for one step
                p.grad = q.grad = None
                continue
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
        for p, q in zip(params, copies, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-14, atol=1e-15)  # the same operations in another order


def test_adamw_rounds_bfloat16_weights_once() -> None:
    """1 - lr wd = 0.9999 is 1 in bfloat16: decay must be added to the step before the rounding."""
    W = nn.Parameter(torch.full((64, 64), 1.0, dtype=torch.bfloat16))
    optimizer = AdamW([W], lr=1e-3, weight_decay=0.1)
    W.grad = torch.ones_like(W)
    optimizer.step()
    expected = torch.tensor(1.0 * (1 - 1e-4) - 1e-3).bfloat16()
    assert torch.equal(W.detach(), expected.expand(64, 64))
    assert optimizer.state[W]["exp_avg_sq"].dtype == torch.float32


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("original", [True, False])
def test_muon_equals_the_plain_one_matrix_algorithm(nesterov: bool, original: bool) -> None:
    shapes = [(9, 5), (5, 9), (9, 5), (6, 6)]
    params = [nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in shapes]
    plain = [
        SimpleMuon(p.detach().numpy(), mu=0.9, nesterov=nesterov, wd=0.2, original=original) for p in params
    ]
    rule = "original" if original else "match_rms_adamw"
    optimizer = Muon(params, lr=0.02, momentum=0.9, nesterov=nesterov, weight_decay=0.2, adjust_lr=rule)
    for _ in range(5):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
        for p, reference in zip(params, plain, strict=True):
            reference.step(p.grad.numpy(), 0.02)
            np.testing.assert_allclose(
                p.detach().numpy(), reference.W, rtol=0, atol=1e-12
            )  # float64 rounding


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
@pytest.mark.parametrize("rule", ["original", "match_rms_adamw"])
def test_muon_equals_torchs_up_to_bfloat16(rule: str) -> None:
    for shape in [(40, 16), (16, 40)]:
        W = nn.Parameter(torch.randn(shape))
        V = nn.Parameter(W.detach().clone())
        start = W.detach().clone()
        ours = Muon([W], lr=0.02, weight_decay=0.1, adjust_lr=rule, ns_dtype="bfloat16")
        theirs = torch.optim.Muon([V], lr=0.02, weight_decay=0.1, adjust_lr_fn=rule)
        for _ in range(6):
            W.grad = torch.randn_like(W)
            V.grad = W.grad.clone()
            ours.step()
            theirs.step()
        error = (W - V).norm() / (V - start).norm()
        assert error < 0.03, "dossier: two bfloat16 iterations differ by 1-2% of the movement"


def test_muon_step_size_and_scale_invariance() -> None:
    W = torch.randn(48, 20, dtype=torch.float64)
    G = torch.randn_like(W)
    steps = []
    for scale in (1.0, 1e6):
        p = nn.Parameter(W.clone())
        optimizer = Muon([p], lr=0.1)
        p.grad = scale * G
        optimizer.step()
        steps.append(p.detach() - W)
    torch.testing.assert_close(steps[0], steps[1], rtol=0, atol=1e-12)
    lr_adjusted = 0.1 * 0.2 * math.sqrt(48)
    assert torch.linalg.matrix_norm(steps[0], 2) <= 1.2024 * lr_adjusted
    rms = steps[0].pow(2).mean().sqrt().item() / 0.1
    assert 0.15 <= rms <= 0.2, "dossier: 0.17 to 0.19 of lr; a single small matrix scatters more"


def test_without_momentum_the_direction_is_the_polar_factor_but_for_the_quintic() -> None:
    """SWAN's whitening without GradNorm is the exact polar factor; the quintic keeps its singular vectors."""
    p = nn.Parameter(torch.zeros(12, 7, dtype=torch.float64))
    optimizer = Muon([p], lr=1.0, momentum=0.0, nesterov=False, adjust_lr="original")
    p.grad = torch.randn_like(p)
    optimizer.step()
    torch.testing.assert_close(polar_svd(p.detach()), polar_svd(-p.grad), rtol=0, atol=1e-10)


def test_low_rank_muon_moves_each_factor_as_a_matrix() -> None:
    A, B = (nn.Parameter(torch.randn(k, 3, dtype=torch.float64)) for k in (8, 6))
    C, D = (nn.Parameter(x.detach().clone()) for x in (A, B))
    for x, y in ((A, C), (B, D)):
        x.grad = torch.randn_like(x)
        y.grad = x.grad.clone()
    Muon([{"params": [A, B], "role": "factors"}], lr=0.1).step()
    Muon([C, D], lr=0.1).step()
    assert torch.equal(A, C)
    assert torch.equal(B, D)


def test_stored_momentum_is_not_normalized_in_place() -> None:
    """torch 2.13.0 does that for bfloat16 weights without Nesterov."""
    p = nn.Parameter(torch.randn(8, 5).bfloat16())
    optimizer = Muon([p], nesterov=False, momentum=0.5, ns_dtype="bfloat16")
    p.grad = torch.randn(8, 5).bfloat16()
    optimizer.step()
    assert torch.equal(optimizer.state[p]["momentum"], 0.5 * p.grad.float())


def test_flops_are_the_stated_formula() -> None:
    p = nn.Parameter(torch.zeros(30, 20))
    assert Muon([p]).step_flops() == 5 * (4 * 20 * 20 * 30 + 2 * 20**3) + 10 * 600
    assert AdamW([p]).step_flops() == 14 * 600


@pytest.mark.parametrize("has_instructions", [True, False])
def test_muon_fast_takes_bfloat16_only_where_the_processor_multiplies_in_it(
    has_instructions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orthogonal, "multiplies_fast_in_bfloat16", lambda kind: has_instructions)
    single, double = torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.float64)
    assert orthogonal.iteration_dtype("fast", single) == (
        torch.bfloat16 if has_instructions else torch.float32
    )
    assert orthogonal.iteration_dtype("fast", double) == torch.float64
    assert orthogonal.iteration_dtype("auto", single) == torch.float32, "the default is the same on every CPU"
    G = torch.randn(12, 5)
    results = []
    for choice in ("fast", "bfloat16" if has_instructions else "float32"):
        W = nn.Parameter(torch.ones(12, 5))
        W.grad = G.clone()
        Muon([W], ns_dtype=choice).step()
        results.append(W.detach())
    assert torch.equal(*results)
    assert multiplies_fast_in_bfloat16("cuda")
    assert not multiplies_fast_in_bfloat16("mps")
    assert isinstance(multiplies_fast_in_bfloat16("cpu"), bool)
