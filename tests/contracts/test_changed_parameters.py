"""What happens to a parameter behind an optimizer's back, over every optimizer: it grows, shrinks, changes
its dtype, is exchanged for another object, or is stepped within autocast.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from lowrise.errors import UsageError
from lowrise.optim import OPTIMIZERS, AdamW, Muon, Optimizer
from lowrise.optim.engine.in_backward import step_in_backward

SHAPES = {
    "matrix": [(12, 8)],
    "factors": [(12, 4), (8, 4)],
    "svd": [(12, 4), (4,), (8, 4)],
    "other": [(12, 8)],
}
CASES = [
    (name, role)
    for name, kind in sorted(OPTIMIZERS.items())
    for role in sorted({*kind.roles, "other"})
    if role in SHAPES
]


def build(name: str, role: str) -> tuple[Optimizer, list[nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(s, generator=generator).abs() + 0.1) for s in SHAPES[role]]
    if role == "svd":
        for i in (0, 2):
            params[i].data = torch.linalg.qr(params[i].data)[0]
    pairs = [(f"layer.{i}", p) for i, p in enumerate(params)]
    kind: Any = OPTIMIZERS[name]
    return kind([{"params": pairs, "role": role}], lr=1e-3), params


def give_gradients(params: list[nn.Parameter], seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


@pytest.mark.parametrize(("name", "role"), CASES)
@pytest.mark.parametrize("lr", [float("nan"), float("inf"), -1e-3])
def test_a_rate_that_no_update_can_have_is_refused_before_anything_moves(
    name: str, role: str, lr: float
) -> None:
    optimizer, params = build(name, role)
    before = [p.detach().clone() for p in params]
    give_gradients(params)
    optimizer.param_groups[0]["lr"] = lr
    with pytest.raises(UsageError, match="parameter group 0 has lr = "):
        optimizer.step()
    assert all(torch.equal(p, start) for p, start in zip(params, before, strict=True))


@pytest.mark.parametrize(("name", "role"), CASES)
def test_what_is_frozen_in_mid_run_stays_or_is_refused_with_its_partner(name: str, role: str) -> None:
    optimizer, params = build(name, role)
    give_gradients(params)
    optimizer.step()
    before = [p.detach().clone() for p in params]
    give_gradients(params)
    params[-1].requires_grad_(False)
    params[-1].grad = None
    if len(params) > 1:
        with pytest.raises(UsageError, match=rf"layer\.{len(params) - 1} is frozen"):
            optimizer.step()
        for p in params:
            p.requires_grad_(False)
            p.grad = None
    optimizer.step()
    assert all(torch.equal(p, start) for p, start in zip(params, before, strict=True))


@pytest.mark.parametrize(("name", "role"), CASES)
@pytest.mark.parametrize("rows", [3, 4000])
def test_parameter_of_another_size_is_refused_by_name(name: str, role: str, rows: int) -> None:
    optimizer, params = build(name, role)
    give_gradients(params)
    optimizer.step()
    params[0].data = torch.ones(rows, params[0].shape[1])
    before = params[0].detach().clone()
    give_gradients(params)
    with pytest.raises(UsageError, match=r"layer\.0 had shape \(12, .*build the optimizer after resizing"):
        optimizer.step()
    assert torch.equal(params[0], before)


def test_parameter_of_another_size_is_refused_in_the_backward_pass() -> None:
    net = nn.Linear(8, 12, bias=False)
    optimizer = AdamW([{"params": list(net.named_parameters()), "role": "other"}], lr=1e-3)
    net.weight.data = torch.randn(40, 8)
    with pytest.raises(UsageError, match="weight had shape"), step_in_backward(optimizer):
        net(torch.ones(2, 8)).sum().backward()


@pytest.mark.parametrize(("name", "role"), CASES)
def test_exchanged_parameters_get_new_state_before_the_first_step(name: str, role: str) -> None:
    optimizer, params = build(name, role)
    expected, others = build(name, role)
    optimizer.param_groups = copy.deepcopy(optimizer.param_groups)
    exchanged = optimizer.param_groups[0]["params"]
    for _ in range(2):
        give_gradients(exchanged)
        give_gradients(others)
        optimizer.step()
        expected.step()
    assert all(torch.equal(a, b) for a, b in zip(exchanged, others, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(exchanged, params, strict=True))


def test_exchanged_parameters_are_refused_by_name_after_a_step() -> None:
    optimizer = Muon([("w", nn.Parameter(torch.randn(8, 4)))], lr=1e-3)
    give_gradients(optimizer.param_groups[0]["params"])
    optimizer.step()
    optimizer.param_groups = copy.deepcopy(optimizer.param_groups)
    give_gradients(optimizer.param_groups[0]["params"])
    with pytest.raises(UsageError, match=r"w .*exchanged.*build the optimizer after"):
        optimizer.step()


@pytest.mark.parametrize(("name", "role"), CASES)
def test_a_model_made_double_is_refused_by_name(name: str, role: str) -> None:
    optimizer, params = build(name, role)
    for p in params:
        p.data = p.data.double()
    give_gradients(params)
    with pytest.raises(UsageError, match=r"layer\.0 had dtype torch.float32"):
        optimizer.step()


@pytest.mark.parametrize(("name", "role"), CASES)
def test_a_model_made_complex_is_refused_by_name(name: str, role: str) -> None:
    optimizer, params = build(name, role)
    for p in params:
        p.data = p.data.to(torch.complex64)
        p.grad = torch.zeros_like(p)
    with pytest.raises(UsageError, match=r"layer\.0 had dtype torch.float32 .* and has torch.complex64 now"):
        optimizer.step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
@pytest.mark.parametrize(("name", "role"), CASES)
def test_a_model_that_was_moved_is_refused_by_name(name: str, role: str) -> None:
    optimizer, params = build(name, role)
    for p in params:
        p.data = p.data.to("cuda")
        p.grad = torch.zeros_like(p)
    with pytest.raises(UsageError, match=r"layer\.0 was on cpu when .* and is on cuda:0 now.*after moving"):
        optimizer.step()


def test_a_step_that_meets_no_gradient_is_told_once() -> None:
    """As after `model.to("meta")`, which gives the model other Parameters."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = Muon.from_model(model, lr=1e-3)
    model.to("meta")
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.warns(UserWarning, match="Muon met no gradient at this step.*build it after"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


def test_gradient_from_before_a_change_is_refused() -> None:
    weight = nn.Parameter(torch.randn(4, 4))
    optimizer = AdamW([{"params": [("w", weight)], "role": "other"}], lr=1e-3)
    weight.grad = torch.ones(4, 4)
    weight.data, old = torch.randn(6, 4), weight.data
    with pytest.raises(UsageError, match="w had shape"):
        optimizer.step()
    weight.data = old
    optimizer.step()


@pytest.mark.parametrize(("name", "role"), CASES)
def test_a_step_within_autocast_has_the_same_bits(name: str, role: str) -> None:
    (inside, a), (outside, b) = build(name, role), build(name, role)
    for seed in range(3):
        give_gradients(a, seed)
        give_gradients(b, seed)
        with torch.autocast("cpu", torch.bfloat16):
            inside.step()
        outside.step()
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_state_of_torch_adamw_is_taken_with_the_options_that_it_lacks() -> None:
    net = nn.Linear(4, 3)
    twin = copy.deepcopy(net)
    old = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    new = AdamW([{"params": list(twin.parameters()), "role": "other"}], lr=1e-3)
    give_gradients(list(net.parameters()))
    old.step()
    with torch.no_grad():
        for p, q in zip(twin.parameters(), net.parameters(), strict=True):
            p.copy_(q)
    new.load_state_dict(old.state_dict())
    for model, optimizer in ((net, old), (twin, new)):
        give_gradients(list(model.parameters()), seed=2)
        optimizer.step()
    for p, q in zip(twin.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)  # fused against foreach


def test_state_with_a_decay_in_the_gradient_is_refused() -> None:
    net = nn.Linear(4, 3)
    new = AdamW([{"params": list(net.parameters()), "role": "other"}], lr=1e-3)
    old = torch.optim.Adam(net.parameters(), weight_decay=0.1)
    give_gradients(list(net.parameters()))
    old.step()
    saved = old.state_dict()
    if "decoupled_weight_decay" not in saved["param_groups"][0]:
        pytest.skip("this torch does not write which kind of decay it is")
    with pytest.raises(UsageError, match=r"weight_decay = 0.1 to the gradient"):
        new.load_state_dict(saved)
    saved["param_groups"][0]["weight_decay"] = 0.0
    new.load_state_dict(saved)
    new.step()


def test_state_of_an_ascending_optimizer_is_refused() -> None:
    net = nn.Linear(4, 3)
    old = torch.optim.AdamW(net.parameters(), maximize=True)
    give_gradients(list(net.parameters()))
    old.step()
    new = AdamW([{"params": list(net.parameters()), "role": "other"}], lr=1e-3)
    with pytest.raises(UsageError, match="maximize"):
        new.load_state_dict(old.state_dict())
