"""`decay = "product"` for every optimizer of factors: the formula, its limits, what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.optim import OPTIMIZERS, Optimizer
from lowrise.optim.rules.product_decay import product_decay_rate, product_decay_terms

FACTORS = sorted(name for name, kind in OPTIMIZERS.items() if "factors" in kind.roles)
SHAPES = [(8, 6, 3), (8, 6, 3), (5, 9, 2)]
LR, WD = 0.05, 0.4


def pairs(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(3)
    return [
        nn.Parameter(torch.randn(k, r, generator=g, dtype=torch.float64).div(k**0.5).to(dtype))
        for m, n, r in SHAPES
        for k in (m, n)
    ]


def build(name: str, params: list[nn.Parameter], **options: Any) -> Optimizer:
    group = {"params": params, "role": "factors", "state_format": options.pop("state_format", "float32")}
    return OPTIMIZERS[name]([group], lr=LR, **options)


def give(params: list[nn.Parameter], t: int, size: float = 1.0) -> None:
    g = torch.Generator().manual_seed(50 + t)
    for p in params:
        p.grad = size * torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype)


def decayed(params: list[Tensor], rate: float) -> list[Tensor]:
    """The formula, pair by pair."""
    out = []
    for A, B in zip(params[::2], params[1::2], strict=True):
        out += [A - rate * A @ (B.mT @ B), B - rate * B @ (A.mT @ A)]
    return out


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_a_gradient_only_the_product_decays(name: str, dtype: torch.dtype) -> None:
    params = pairs(dtype)
    start = [p.detach().clone() for p in params]
    give(params, 0, size=0.0)
    build(name, params, weight_decay=WD, decay="product").step()
    # Moments are zero and so is the step, but for Adam's eps: 0 / (0 + eps).
    for p, expected in zip(params, decayed(start, LR * WD), strict=True):
        assert torch.allclose(p, expected, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=0.0)


@pytest.mark.parametrize("name", sorted({*FACTORS} - {"spectron", "loramuon"}))
def test_a_step_is_the_decay_and_the_rule_s_own_step(name: str) -> None:
    """Of rules whose step does not depend on the factors: what they add without any decay."""
    with_decay, without = pairs(), pairs()
    optimizers = build(name, with_decay, weight_decay=WD, decay="product"), build(name, without)
    for t in range(3):
        before = [p.detach().clone() for p in with_decay], [p.detach().clone() for p in without]
        for params, optimizer in zip((with_decay, without), optimizers, strict=True):
            give(params, t)
            optimizer.step()
        for p, q, old, base in zip(with_decay, without, decayed(before[0], LR * WD), before[1], strict=True):
            assert torch.allclose(p - old, q - base, atol=1e-12)


@pytest.mark.parametrize("name", FACTORS)
def test_no_decay_is_no_decay_to_the_bit(name: str) -> None:
    runs = []
    for options in ({}, {"decay": "product", "weight_decay": 0.0}):
        params = pairs(torch.float32)
        optimizer = build(name, params, **options)
        for t in range(3):
            give(params, t)
            optimizer.step()
        runs.append([p.detach().clone() for p in params])
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


@pytest.mark.parametrize("name", FACTORS)
def test_a_rate_too_large_is_cut_and_no_sign_turns(name: str) -> None:
    params = [nn.Parameter(30 * p.detach()) for p in pairs()]
    products = [A.detach() @ B.detach().mT for A, B in zip(params[::2], params[1::2], strict=True)]
    give(params, 0, size=0.0)
    build(name, params, weight_decay=5.0, decay="product").step()  # lr wd ||S|| is about 200
    for old, A, B in zip(products, params[::2], params[1::2], strict=True):
        new = (A @ B.mT).detach()
        assert torch.linalg.matrix_norm(new) < torch.linalg.matrix_norm(old)
        assert (new * old).sum() > 0


@pytest.mark.parametrize("name", FACTORS)
def test_bfloat16_weights_do_not_lose_a_small_decay(name: str) -> None:
    """A decay of 1e-3 of an entry is below half a unit of bfloat16 (4e-3): added to the step before the
    rounding, it is there in some entries; rounded by itself, in none."""
    runs = []
    for wd in (0.0, 0.02):
        params = pairs(torch.bfloat16)
        optimizer = build(name, params, weight_decay=wd, decay="product")
        for t in range(4):
            give(params, t)
            optimizer.step()
        runs.append([p.detach().clone() for p in params])
    assert any(not torch.equal(x, y) for x, y in zip(*runs, strict=True))


@pytest.mark.parametrize("name", sorted({*FACTORS} & {"adamw", "muon", "relora"}))
def test_other_roles_decay_by_entries(name: str) -> None:
    role = "matrix" if "matrix" in OPTIMIZERS[name].roles else "other"
    runs = []
    for decay in ("entries", "product"):
        W = nn.Parameter(torch.linspace(-1, 1, 12).reshape(4, 3).clone())
        W.grad = torch.ones(4, 3)
        OPTIMIZERS[name]([{"params": [W], "role": role}], lr=LR, weight_decay=WD, decay=decay).step()
        runs.append(W.detach().clone())
    assert torch.equal(*runs)


def test_loro_s_exact_steps_do_not_decay() -> None:
    runs = []
    for wd in (0.0, WD):
        params = pairs()
        optimizer = build("loro", params, exact_every=1, weight_decay=wd, decay="product")
        give(params, 0)
        optimizer.step()
        runs.append([p.detach().clone() for p in params])
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


def test_spectron_s_certified_step_is_bounded_after_the_decay() -> None:
    params = pairs(torch.float32)
    optimizer = build(
        "spectron", params, variant="certified", weight_decay=WD, decay="product", norm_refresh=5
    )
    for t in range(6):
        before = decayed([p.detach().double() for p in params], LR * WD)
        give(params, t)
        optimizer.step()
        for i in range(0, len(params), 2):
            A, B = (p.detach().double() for p in params[i : i + 2])
            change = A @ B.mT - before[i] @ before[i + 1].mT
            assert torch.linalg.matrix_norm(change, 2) <= LR * (
                1 + 1e-4
            )  # float32 rounding of the decay itself


def test_the_norm_of_the_product_falls_along_its_gradient() -> None:
    """The terms are the gradient of ||A B^T||_F^2 / 2 by autograd."""
    A, B = (p.detach().clone().requires_grad_() for p in pairs()[:2])
    (0.5 * torch.linalg.matrix_norm(A @ B.mT) ** 2).backward()
    terms = product_decay_terms(A.detach()[None], B.detach()[None], 1e-3)
    for term, factor in zip(terms, (A, B), strict=True):
        assert torch.allclose(term[0], 1e-3 * factor.grad, rtol=1e-12)


def test_each_singular_value_of_balanced_factors_falls_by_twice_its_square() -> None:
    s = torch.tensor([2.0, 1.0, 0.1], dtype=torch.float64)
    A = B = torch.diag(s.sqrt())[None]
    a, b = product_decay_terms(A, B, 1e-5)
    fallen = 1 - torch.linalg.svdvals((A - a) @ (B - b).mT)[0] / s
    assert torch.allclose(fallen, 2e-5 * s, rtol=1e-4)


def test_the_cut_of_a_rate() -> None:
    S = torch.diag(torch.tensor([3.0, 4.0]))[None]
    assert product_decay_rate(S, S / 2, 1.0).item() == pytest.approx(1 / 5)
    assert product_decay_rate(S, S / 2, 0.1).item() == pytest.approx(0.1)
    assert product_decay_rate(torch.zeros_like(S), torch.zeros_like(S), 0.1).item() == pytest.approx(0.1)


@pytest.mark.parametrize("name", FACTORS)
def test_an_unknown_decay_gets_the_choices(name: str) -> None:
    with pytest.raises(UsageError, match=r"decay = 'norm'; choose.*product"):
        build(name, pairs(), decay="norm")


@pytest.mark.parametrize("name", FACTORS)
def test_its_flops_are_counted(name: str) -> None:
    plain, product = (build(name, pairs(), **options).step_flops() for options in ({}, {"decay": "product"}))
    assert product - plain == sum(4 * (m + n) * r * r for m, n, r in SHAPES)


@pytest.mark.parametrize(("name", "options"), [("adamw", {"decay": "product"}), ("loramuon", {})])
def test_factors_with_a_residual_beside_them_are_refused(name, options):
    """A layer that adds to A (dlr) has another weight than A B^T."""
    A, B = (nn.Parameter(torch.rand(k, 3)) for k in (8, 6))
    group = {"params": [A, B], "role": "factors", "residual_norm": 0.5}
    with pytest.raises(UsageError, match="residual"):
        OPTIMIZERS[name]([group], lr=0.1, **options)
