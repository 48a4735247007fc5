"""What TSVD promises of its steps: orthonormality for ever, limits, symmetries."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.layers import LowRankLayer, SVDLinear
from lowrise.linalg import orthonormality_error, qf
from lowrise.optim import TSVD


def triple(m: int, n: int, r: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    U, V = (qf(torch.randn(k, r, generator=g, dtype=torch.float64)) for k in (m, n))
    s = torch.rand(r, generator=g, dtype=torch.float64).sort(descending=True).values + 0.5
    return [nn.Parameter(t.to(dtype)) for t in (U, s, V)]


def optimizer_for(params: list[nn.Parameter], **options: object) -> TSVD:
    return TSVD([{"params": params, "role": "svd"}], **options)  # type: ignore[arg-type]


def dense(params: list[nn.Parameter]) -> Tensor:
    U, s, V = (p.detach() for p in params)
    return (U * s) @ V.T


def set_grads(params: list[nn.Parameter], G: Tensor) -> None:
    """Chain rule from a gradient of the dense weight."""
    U, s, V = (p.detach() for p in params)
    G = G.to(U.dtype)
    for p, g in zip(params, (G @ V * s, torch.diagonal(U.T @ G @ V).clone(), G.T @ U * s), strict=True):
        p.grad = g


@pytest.mark.parametrize("steps", [500, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("lr", [3e-3, 2e-2])
def test_orthonormal_after_many_steps(steps: int, lr: float) -> None:
    """Correlated random gradients; the error is that of one retraction after any number of steps."""
    params = triple(96, 64, 16, dtype=torch.float32)
    optimizer = optimizer_for(params, lr=lr)
    G = torch.zeros(96, 64)
    worst = 0.0
    for t in range(steps):
        G = 0.9 * G + torch.randn(96, 64)
        set_grads(params, G)
        optimizer.step()
        if t % (steps // 20) == 0 or t == steps - 1:
            worst = max(worst, *(float(orthonormality_error(params[i].detach())) for i in (0, 2)))
    assert worst <= 1e-6


@pytest.mark.parametrize("steps", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_orthonormal_in_a_model_with_rank_events_and_a_resume(steps, text_folder, tmp_path) -> None:
    from small_runs import config_for, trainer_for

    config = config_for(
        text_folder,
        "tsvd",
        **{
            "train.steps": steps,
            "layer.energy": 0.9,
            "layer.rank_multiple": 2,
            "layer.min_rank": 4,
            "layer.max_rank": 24,
            "eval.every": 0,
            "checkpoint.every": 0,
            "log.every": 1000,
            "log.telemetry_every": 0,
        },
    )
    worst = 0.0
    trainer = trainer_for(config, tmp_path)
    ranks = set()
    for t in range(1, steps + 1):
        trainer.update()
        if t == steps // 4:  # between the second and the third event
            trainer.keeping.save()
            trainer.keeping.saver.finish()
            trainer = trainer_for(config, tmp_path)
            trainer._resume()
            assert trainer.progress.step == t
        if t % (steps // 50) == 0:
            layers = [m for m in trainer.model.modules() if isinstance(m, SVDLinear)]
            ranks |= {layer.rank for layer in layers}
            worst = max(worst, *(layer.orthonormality_error() for layer in layers))
    assert len(ranks) > 1
    assert worst <= 1e-6


@pytest.mark.parametrize("options", [{}, {"retraction": "polar", "project": "both"}])
def test_a_quadratic_ends_at_the_best_approximation(options: dict) -> None:
    """project="step" is left out: it rests up to 9% above, where the projection takes all of Adam's
    direction.
    """
    torch.manual_seed(1)
    target = torch.randn(12, 10, dtype=torch.float64)
    params = triple(12, 10, 4)
    optimizer = optimizer_for(params, lr=0.02, **options)
    steps = 2000
    for t in range(steps):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 + math.cos(math.pi * t / steps)) / 2
        set_grads(params, dense(params) - target)
        optimizer.step()
    best = torch.linalg.svdvals(target)[4:].square().sum()
    loss = (dense(params) - target).square().sum()
    assert float(loss / best) - 1 <= 1e-9  # quadratic near the optimum, where the rate has gone to zero


def test_sign_of_a_pair_does_not_matter() -> None:
    left, right = triple(12, 10, 4), triple(12, 10, 4)
    with torch.no_grad():
        right[0][:, 1] *= -1
        right[1][1] *= -1
    optimizers = [optimizer_for(p, lr=0.01) for p in (left, right)]
    for t in range(10):
        G = torch.randn(12, 10, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        for params, optimizer in zip((left, right), optimizers, strict=True):
            set_grads(params, G)
            optimizer.step()
    torch.testing.assert_close(dense(left), dense(right), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("m", "n"), [(8, 8), (12, 8), (8, 12)])
def test_full_rank(m: int, n: int) -> None:
    params = triple(m, n, 8, dtype=torch.float32)
    optimizer = optimizer_for(params, lr=0.02)
    for _ in range(50):
        set_grads(params, torch.randn(m, n))
        optimizer.step()
    assert max(float(orthonormality_error(params[i].detach())) for i in (0, 2)) <= 1e-6


def test_layers_of_all_shapes_in_one_optimizer_are_moved_as_alone() -> None:
    """Factors of equal shape are stacked, U of one layer with V of another."""
    shapes = [(12, 10, 4), (10, 12, 4), (12, 12, 4), (16, 10, 3)]
    together = [triple(*shape, seed=i) for i, shape in enumerate(shapes)]
    alone = [triple(*shape, seed=i) for i, shape in enumerate(shapes)]
    optimizers = [optimizer_for([p for params in together for p in params], lr=0.02)]
    optimizers += [optimizer_for(params, lr=0.02) for params in alone]
    for t in range(5):
        g = torch.Generator().manual_seed(t)
        for (m, n, _), a, b in zip(shapes, together, alone, strict=True):
            G = torch.randn(m, n, generator=g, dtype=torch.float64)
            set_grads(a, G)
            set_grads(b, G)
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(together, alone, strict=True):
        for p, q in zip(a, b, strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-14)


def test_decay_acts_on_the_singular_values_only() -> None:
    params = triple(12, 10, 4)
    optimizer = optimizer_for(params, lr=0.01, weight_decay=0.5)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(params[1].detach(), before[1] * (1 - 3 * 0.01 * 0.5))
    for i in (0, 2):
        torch.testing.assert_close(params[i].detach(), before[i], rtol=0, atol=1e-15)


def test_the_angle_of_a_step_is_the_same_for_every_width() -> None:
    for p in (64, 256):
        params = triple(p, p, 4)
        before = params[0].detach().clone()
        optimizer = optimizer_for(params, lr=3e-3, project="step")
        for q in params:
            q.grad = torch.randn_like(q)
        optimizer.step()
        angle = (before * params[0].detach()).sum(0).clamp(max=1).acos()
        # first step of Adam: every entry moves by lr; 10% for the part along the column's own direction
        torch.testing.assert_close(angle, torch.full_like(angle, 3e-3 * math.sqrt(128)), rtol=0.1, atol=0)


def test_tf32_and_autocast_of_the_user_are_switched_off_and_put_back() -> None:
    params = triple(64, 48, 8, dtype=torch.float32)
    optimizer = optimizer_for(params, lr=0.01)
    before = torch.get_float32_matmul_precision()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(3):
            for p in params:
                p.grad = torch.randn_like(p)
            optimizer.step()
    assert torch.get_float32_matmul_precision() == before
    assert max(float(orthonormality_error(params[i].detach())) for i in (0, 2)) <= 1e-6


def test_lr_zero_leaves_the_bits_and_moments_go_on() -> None:
    params = triple(12, 10, 4, dtype=torch.float32)
    optimizer = optimizer_for(params, lr=0.0)
    before = [p.detach().clone() for p in params]
    set_grads(params, torch.randn(12, 10))
    optimizer.step()
    assert all(torch.equal(a, b.detach()) for a, b in zip(before, params, strict=True))
    assert optimizer.state[params[0]]["exp_avg"].abs().max() > 0


@pytest.mark.parametrize(
    ("option", "value"),
    [("project", "always"), ("retraction", "svd"), ("spectrum_scale", -1.0), ("reference_rows", math.inf)],
)
def test_options_that_cannot_be(option: str, value: object) -> None:
    with pytest.raises(UsageError, match=option):
        optimizer_for(triple(12, 10, 4), **{option: value})


def test_the_factors_of_every_layer_start_orthonormal() -> None:
    from lowrise.model import LlamaConfig, build_model

    model = build_model(LlamaConfig.preset("nano"), layer="svd", rank=0.25)
    layers = [m for m in model.modules() if isinstance(m, LowRankLayer)]
    assert len(layers) == 14
    assert all(layer.orthonormality_error() <= 1e-7 for layer in layers)
