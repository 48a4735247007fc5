"""Weights of fixed norm under every optimizer that has the option: one norm from start to end, along the
rule's own direction, by the angle of the learning rate.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowrise
from lowrise.errors import UsageError
from lowrise.layers import LAYERS
from lowrise.model import LlamaConfig, build_model
from lowrise.optim import OPTIMIZERS, AdamW, Muon, Optimizer, Spectron, step_in_backward

SHAPES = {"matrix": [(8, 6), (6, 8), (8, 6)], "factors": [(8, 3), (6, 3), (8, 3), (6, 3), (6, 2), (10, 2)]}
CASES = [
    pytest.param(name, role, id=f"{name}-{role}")
    for name, kind in OPTIMIZERS.items()
    for role in sorted(kind.ball_roles & kind.roles)
]
UNABLE = [name for name, kind in OPTIMIZERS.items() if not kind.ball_roles & kind.roles]


def params_of(role: str, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(7)
    return [nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64).to(dtype)) for s in SHAPES[role]]


def build(name: str, role: str, params: list[nn.Parameter], **group: Any) -> Optimizer:
    return OPTIMIZERS[name]([{"params": params, "role": role, **group}], lr=0.05, weight_decay=0.0)


def set_grads(params: list[nn.Parameter], t: int, scale: float = 1.0) -> None:
    g = torch.Generator().manual_seed(100 + t)
    for p in params:
        p.grad = (torch.randn(p.shape, generator=g, dtype=torch.float64) * scale).to(p.dtype)


def whole(role: str, params: list[nn.Parameter]) -> list[Tensor]:
    """Weights in float64; of pairs their products."""
    wide = [p.detach().double().clone() for p in params]
    return [A @ B.T for A, B in zip(wide[::2], wide[1::2], strict=True)] if role == "factors" else wide


def norms(role: str, params: list[nn.Parameter]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(W) for W in whole(role, params)])


@pytest.mark.parametrize(("name", "role"), CASES)
@pytest.mark.parametrize(
    # Rounding of entries, of which a norm has 48: 2^-24 and 2^-9 of an entry.
    ("dtype", "bar"),
    [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 5e-3)],
)
def test_the_norm_stays(name: str, role: str, dtype: torch.dtype, bar: float) -> None:
    params = params_of(role, dtype)
    start = norms(role, params)
    optimizer = build(name, role, params, hyperball=True)
    for t in range(60):
        set_grads(params, t)
        optimizer.step()
        torch.testing.assert_close(norms(role, params), start, rtol=bar, atol=0)


@pytest.mark.parametrize(("name", "role"), CASES)
def test_a_step_goes_along_the_rules_own_direction_by_the_angle_lr(name: str, role: str) -> None:
    """Against the rule without the option, from the same weights: its change is the direction."""
    lr = 0.05
    free, held = params_of(role), params_of(role)
    before = whole(role, free)
    tangent = [p.detach().clone() for p in free]
    for optimizer in (build(name, role, free), build(name, role, held, hyperball=True)):
        (group,) = optimizer.param_groups
        set_grads(group["params"], 0)
        optimizer.step()
    D = [p.detach() - old for p, old in zip(free, tangent, strict=True)]
    for i, (W, now) in enumerate(zip(before, whole(role, held), strict=True)):
        R = torch.linalg.vector_norm(W)
        if role == "factors":
            A, B, dA, dB = tangent[2 * i], tangent[2 * i + 1], D[2 * i], D[2 * i + 1]
            k = lr * R / torch.linalg.vector_norm(dA @ B.T + A @ dB.T)
            Y = (A + k * dA) @ (B + k * dB).T
        else:
            Y = W + lr * R * D[i] / torch.linalg.vector_norm(D[i])
        torch.testing.assert_close(now, Y * (R / torch.linalg.vector_norm(Y)), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("name", "role"), CASES)
def test_scaled_weights_go_a_scaled_way(name: str, role: str) -> None:
    """The same gradients; a pair's A is scaled, whose gradients stay the same too."""
    scale, ends = 64.0, []
    for factor in (1.0, scale):
        params = params_of(role)
        with torch.no_grad():
            for p in params[:: 2 if role == "factors" else 1]:
                p.mul_(factor)
        if role == "factors":
            with torch.no_grad():  # both, so that the split stays: sqrt(scale) each
                for A, B in zip(params[::2], params[1::2], strict=True):
                    A.div_(factor**0.5)
                    B.mul_(factor**0.5)
        optimizer = build(name, role, params, hyperball=True)
        for t in range(8):
            set_grads(params, t)
            optimizer.step()
        ends.append(whole(role, params))
    for plain, scaled in zip(*ends, strict=True):
        torch.testing.assert_close(scaled, scale * plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["muon", "scale", "sinkgd", "spectron", "swan"])
def test_the_size_of_gradients_does_not_matter(name: str) -> None:
    role, ends = next(iter(OPTIMIZERS[name].ball_roles & OPTIMIZERS[name].roles)), []
    for scale in (1.0, 1e6):
        params = params_of(role)
        optimizer = build(name, role, params, hyperball=True)
        for t in range(5):
            set_grads(params, t, scale)
            optimizer.step()
        ends.append(whole(role, params))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)  # eps = 1e-7 of Newton-Schulz


@pytest.mark.parametrize(("name", "role"), CASES)
def test_the_radius_is_that_of_the_weights_at_the_first_update(name: str, role: str) -> None:
    """Weights that are loaded after the optimizer was built count; later they come back to the stored one."""
    params = params_of(role)
    optimizer = build(name, role, params, hyperball=True)
    with torch.no_grad():
        params[0].mul_(3.0)
    start = norms(role, params)
    set_grads(params, 0)
    optimizer.step()
    firsts = params[:: 2 if role == "factors" else 1]
    torch.testing.assert_close(torch.stack([optimizer.state[p]["radius"] for p in firsts]), start)
    with torch.no_grad():
        params[0].mul_(1.5)
    set_grads(params, 1)
    optimizer.step()
    torch.testing.assert_close(norms(role, params), start, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("name", "role"), CASES)
def test_what_cannot_be_is_a_sentence(name: str, role: str) -> None:
    params = params_of(role)
    kind = OPTIMIZERS[name]
    with pytest.raises(UsageError, match=r"weight_decay = 0.1 and hyperball = True.*leave weight_decay out"):
        kind([{"params": params, "role": role, "hyperball": True}], lr=0.1, weight_decay=0.1)
    with pytest.raises(UsageError, match=r"hyperball = 'yes'; it must be True or False"):
        build(name, role, params, hyperball="yes")
    optimizer = build(name, role, params, hyperball=True)
    with torch.no_grad():
        params[2].zero_()
    before = [p.detach().clone() for p in params]
    set_grads(params, 0)
    with pytest.raises(UsageError, match=r"parameter 2 .* is zero, and hyperball.*skip="):
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True)), "nothing has moved"
    assert all(float(optimizer.state[p]["step"]) == 0 for p in params)


@pytest.mark.parametrize("name", UNABLE)
def test_an_optimizer_that_cannot_fix_norms_says_so(name: str) -> None:
    role = sorted(OPTIMIZERS[name].roles & {"factors", "svd", "matrix"})[0]
    shapes = {"svd": [(8, 3), (3,), (6, 3)]}.get(role) or SHAPES[role]
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    with pytest.raises(UsageError, match=r"hyperball = True and the role .* cannot fix .*Muon"):
        OPTIMIZERS[name]([{"params": params, "role": role, "hyperball": True}], lr=0.1)


def test_other_groups_and_other_forms_are_refused() -> None:
    norm = nn.Parameter(torch.ones(4))
    with pytest.raises(UsageError, match="hyperball = True and the role 'other'"):
        AdamW([{"params": [norm], "role": "other", "hyperball": True}])
    pair = params_of("factors")[:2]
    with pytest.raises(UsageError, match=r"cannot certify.*hyperball"):
        Spectron([{"params": pair, "role": "factors", "hyperball": True}], variant="certified")
    with pytest.raises(UsageError, match=r"fixes the norms.*roles here are other, svd"):
        lowrise.param_groups(
            build_model(LlamaConfig.preset("nano", vocab_size=61), layer="svd", rank=4), hyperball=True
        )
    model = build_model(LlamaConfig.preset("nano", vocab_size=61), layer="dlr", rank=4)
    with pytest.raises(UsageError, match=r"residual.*dlr.*norm of A B\^T is not the weight's"):
        Spectron.from_model(model, hyperball=True)


def test_from_model_fixes_hidden_matrices_alone() -> None:
    model = build_model(LlamaConfig.preset("nano", vocab_size=61), layer="dense")
    optimizer = Muon.from_model(model, lr=0.05, other_lr=1e-3, other_weight_decay=0.1, hyperball=True)
    assert {g["role"]: g["hyperball"] for g in optimizer.param_groups} == {"matrix": True, "other": False}
    assert "True" in str(lowrise.param_groups(model, roles=Muon.roles, hyperball=True))
    start = {name: p.detach().norm() for name, p in model.named_parameters()}
    tokens = torch.randint(61, (2, 17), generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {n: abs(float(p.detach().norm() / start[n]) - 1) for n, p in model.named_parameters()}
    assert all((moved[n] < 1e-6) == n.endswith("_proj.weight") for n in moved), moved


def test_a_stack_of_experts_has_a_radius_each() -> None:
    experts = nn.Parameter(torch.randn(3, 5, 4) * torch.tensor([1.0, 4.0, 16.0])[:, None, None])
    start = torch.linalg.vector_norm(experts.detach(), dim=(1, 2))
    optimizer = Muon([{"params": [experts], "role": "matrix", "view": "stack", "hyperball": True}], lr=0.1)
    assert optimizer.state[experts]["radius"].shape == (3,)
    for _ in range(5):
        experts.grad = torch.randn(3, 5, 4)
        optimizer.step()
    torch.testing.assert_close(torch.linalg.vector_norm(experts.detach(), dim=(1, 2)), start)
    with torch.no_grad():
        experts[1].zero_()
    fresh = Muon([{"params": [experts], "role": "matrix", "view": "stack", "hyperball": True}], lr=0.1)
    with pytest.raises(UsageError, match="has a matrix of zeros"):
        fresh.step()


@pytest.mark.parametrize(("name", "role"), CASES)
def test_in_the_backward_pass_it_is_the_same(name: str, role: str) -> None:
    params = params_of(role)
    twins = copy.deepcopy(params)
    optimizer, twin = (build(name, role, held, hyperball=True) for held in (params, twins))
    for t in range(3):
        set_grads(params, t)
        wanted = [p.grad.clone() for p in params]
        optimizer.step()
        with step_in_backward(twin):
            sum((p * g).sum() for p, g in zip(twins, wanted, strict=True)).backward()
    for one, other in zip(params, twins, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_that_start_or_stay_apart_from_a_product_are_refused_in_words(layer: str) -> None:
    """Every layer trains under AdamW with the option, with one norm, or says why not."""
    model = build_model(LlamaConfig.preset("nano", vocab_size=61), layer=layer, rank=4)
    tokens = torch.randint(61, (2, 17), generator=torch.Generator().manual_seed(0))
    # A residual, factors that start at zero, and no pair.
    unable = {"dlr": "residual", "lora": "is zero", "sltrain": "is zero", "svd": "roles here are"}
    refused = pytest.raises(UsageError, match=unable[layer]) if layer in unable else nullcontext()
    with refused:
        optimizer = AdamW.from_model(model, lr=0.01, other_lr=1e-3, hyperball=True)
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
