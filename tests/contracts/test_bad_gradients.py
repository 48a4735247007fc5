"""A gradient that is not finite, or too large to be squared, changes nothing: not the weights and state of
its own unit, and not one bit of any other.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from contracts.test_optimizers import CASES as PLAIN_CASES
from contracts.test_optimizers import EXTRA, SHAPES, build, make_params, same, set_grads, weights
from torch import Tensor, nn

from lowrise.optim import OPTIMIZERS, Optimizer, step_in_backward
from lowrise.optim.engine import guard
from lowrise.optim.engine import state_formats as formats
from lowrise.optim.engine.options import UNIT_SIZE

Named = list[tuple[str, nn.Parameter]]

FORMATS = ("float32", "bfloat16", "8bit")
# Name -> what is done to the gradient of one parameter, in place.
BAD = {
    "1e19": lambda g: g.fill_(1e19),
    "3e38": lambda g: g.fill_(3e38),
    "one entry of 1e30": lambda g: g.view(-1)[-1:].fill_(-1e30),
    "norm overflows": lambda g: g.mul_(1e25 / g.abs().amax()),
    "inf": lambda g: g.fill_(math.inf),
    "one nan": lambda g: g.view(-1)[:1].fill_(math.nan),
}
CASES = [
    pytest.param(
        name, role, {**options, "state_format": state_format}, id=f"{name}-{role}-{i}-{state_format}"
    )
    for name in OPTIMIZERS
    for i, options in enumerate([{}, *EXTRA.get(name, [])])
    if "state_format" not in options
    for role in sorted(UNIT_SIZE)
    if role in OPTIMIZERS[name].roles or (role == "other" and not i)
    for state_format in FORMATS
]
ROLES_WITH_OPTIONS = [case for case in CASES if case.id.endswith("-float32")]


@pytest.fixture(autouse=True)
def compress_small_moments_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LEAST_ELEMENTS", 1)


@pytest.fixture(params=["left out", "masked"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As on a CPU, or as on a device that is not waited for."""
    if request.param == "masked":
        monkeypatch.setattr(guard, "reads_at_once", lambda device: False)
    return request.param


def units(role: str) -> list[slice]:
    size = UNIT_SIZE[role]
    return [slice(i, i + size) for i in range(0, len(SHAPES[role]), size)]


def state_of(optimizer: Optimizer) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in optimizer.named_state().items()}


def assert_usable(optimizer: Optimizer, named: Named) -> None:
    """No inf and no NaN, anywhere."""
    for key, tensor in [*optimizer.named_state().items(), *((k, p.detach()) for k, p in named)]:
        assert tensor.isfinite().all(), key


def pair(name: str, role: str, options: dict[str, Any]) -> list[tuple[Optimizer, Named]]:
    """The same parameters twice, after three updates."""
    twins = []
    for _ in range(2):
        named = make_params(role)
        optimizer = build(name, role, named, options)
        for t in range(3):
            set_grads(named, t)
            optimizer.step()
        twins.append((optimizer, named))
    return twins


@pytest.mark.parametrize(("name", "role", "options"), CASES)
def test_a_bad_gradient_is_as_none(name, role, options, way) -> None:
    """Of each kind after another, with good updates before, between and after them."""
    (optimizer, named), (twin, twin_named) = pair(name, role, options)
    chosen = units(role)[-1]
    own = tuple(f"{key}." for key, _ in named[chosen])
    t = 3
    for what in [*BAD, "good"]:
        before = state_of(optimizer)
        for n in (named, twin_named):
            set_grads(n, t)
        if what in BAD:
            BAD[what](named[chosen][-1][1].grad)  # one factor of a pair
            for _, p in twin_named[chosen]:
                p.grad = None
        given = [p.grad.clone() for _, p in named]
        optimizer.step()
        twin.step()
        for grad, (key, p) in zip(given, named, strict=True):
            assert torch.equal(grad.nan_to_num(7.0), p.grad.nan_to_num(7.0)), f"{what}: {key}.grad is written"
        now, other = state_of(optimizer), state_of(twin)
        for key, tensor in now.items():
            assert torch.equal(tensor, other[key]), f"{what}: {key}"
            if what in BAD and key.startswith(own):
                assert torch.equal(tensor, before[key]), f"{what}: {key} of a unit that is left alone"
        assert same(weights(named), weights(twin_named)), what
        assert_usable(optimizer, named)
        t += 1
    assert optimizer.skipped_updates() == len(BAD)
    assert twin.skipped_updates() == 0


@pytest.mark.parametrize(("name", "role", "options"), ROLES_WITH_OPTIONS)
@pytest.mark.parametrize("first", [True, False])
def test_state_is_finite_after_the_largest_gradients_that_are_used(name, role, options, first) -> None:
    named = make_params(role)
    optimizer = build(name, role, named, options)
    for t in range(6):
        set_grads(named, t)
        if (t == 0) is first or t == 3:
            for unit in units(role):
                norm = torch.cat([p.grad.flatten() for _, p in named[unit]]).double().norm()
                for _, p in named[unit]:
                    p.grad.copy_(p.grad.double() * (0.999 * guard.LIMITS[torch.float32] / norm))
        optimizer.step()
    assert optimizer.skipped_updates() == 0
    assert_usable(optimizer, named)


@pytest.mark.parametrize(("name", "role", "options"), ROLES_WITH_OPTIONS)
def test_every_gradient_bad_from_the_first_step_on(name, role, options, way) -> None:
    """What counts from the first update (renewals, resets, limiters) begins when there is one."""
    ends = []
    for bad_steps in (3, 0):
        named = make_params(role)
        optimizer = build(name, role, named, options)
        for _ in range(bad_steps):
            for _, p in named:
                p.grad = torch.full_like(p, math.nan)
            optimizer.step()
        for t in range(3):
            set_grads(named, t)
            optimizer.step()
        assert optimizer.skipped_updates() == bad_steps * len(units(role))
        ends.append([*weights(named), *state_of(optimizer).values()])
    assert same(*ends)


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if "matrix" in OPTIMIZERS[n].roles])
@pytest.mark.parametrize(("view", "shape"), [("stack", (2, 8, 6)), ("flatten", (8, 2, 3))])
def test_tensors_with_a_view(name, view, shape, way) -> None:
    """A stack is one parameter: all of it stays."""
    ends = []
    for bad in (True, False):
        g = torch.Generator().manual_seed(3)
        named = [(f"w{i}", nn.Parameter(torch.randn(shape, generator=g))) for i in range(2)]
        optimizer = OPTIMIZERS[name]([{"params": named, "role": "matrix", "view": view}], lr=0.05)
        for t in range(4):
            set_grads(named, t)
            if t == 2:
                named[0][1].grad = torch.full(shape, 1e30) if bad else None
            optimizer.step()
        ends.append([*weights(named), *state_of(optimizer).values()])
    assert same(*ends)


@pytest.mark.parametrize(("name", "role", "options"), ROLES_WITH_OPTIONS)
def test_within_the_backward_pass(name, role, options) -> None:
    ends = []
    for bad in (True, False):
        named = make_params(role)
        optimizer = build(name, role, named, options)
        chosen = [p for _, p in named[units(role)[-1]]]
        for t, what in enumerate(["good", "good", *BAD, "good"]):
            set_grads(named, t)
            grads = [p.grad for _, p in named]
            left_out = chosen if what in BAD and not bad else []
            if what in BAD and bad:
                BAD[what](chosen[-1].grad)
            for _, p in named:
                p.grad = None
            handles = [
                p.register_hook(lambda _, grad=grad: grad) for (_, p), grad in zip(named, grads, strict=True)
            ]
            loss = sum(
                (p.sum() for _, p in named if all(p is not other for other in left_out)),
                torch.zeros((), requires_grad=True),
            )
            with step_in_backward(optimizer) as moved:
                loss.backward()
            for handle in handles:
                handle.remove()
            assert moved.left_alone == int(what in BAD and bad), what
        assert optimizer.skipped_updates() == len(BAD) * bad
        ends.append([*weights(named), *state_of(optimizer).values()])
    assert same(*ends)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype, way) -> None:
    """Narrow gradients are measured in float32; float64 has a limit of its own."""
    for value, left_alone in {
        torch.bfloat16: ((1e15, False), (1e19, True)),
        torch.float16: ((6e4, False), (math.inf, True)),
        torch.float64: ((1e150, False), (1e152, True)),
    }[dtype]:
        p = nn.Parameter(torch.ones(8, 6, dtype=dtype))
        optimizer = OPTIMIZERS["adamw"]([p], lr=0.1)
        p.grad = torch.full_like(p, value)
        optimizer.step()
        assert optimizer.skipped_updates() == int(left_alone)
        assert torch.equal(p, torch.ones_like(p)) is left_alone
        assert all(t.isfinite().all() for t in optimizer.state[p].values())


def test_a_known_norm_spares_the_check(monkeypatch) -> None:
    named = make_params("other")
    optimizer = build("adamw", "other", named, {})
    set_grads(named, 0)
    looked = []
    monkeypatch.setattr(optimizer._guard, "sift", lambda *a: looked.append(a) or set())
    optimizer.step(grad_norm=10.0)
    assert not looked
    for norm in (math.inf, math.nan, 1e17, None):
        optimizer.step(grad_norm=norm)
    optimizer.step(lambda: None, grad_norm=1.0)  # a closure makes other gradients
    assert len(looked) == 5


def test_counters_are_right_whenever_they_are_read(monkeypatch) -> None:
    """Where nothing waits they are put back when the flags have come, before anyone sees them."""
    monkeypatch.setattr(guard, "reads_at_once", lambda device: False)
    for read in (
        lambda o: o.state_dict()["state"][0]["step"],
        lambda o: next(iter(o.named_state().values())),
        lambda o: next(iter(copy.deepcopy(o).state.values()))["step"],
        lambda o: o.skipped_updates() and o.state[o.param_groups[0]["params"][0]]["step"],
    ):
        named = make_params("matrix")
        optimizer = build("muon", "matrix", named, {})
        set_grads(named, 0)
        named[0][1].grad.fill_(math.inf)
        optimizer.step()
        assert float(read(optimizer)) == 0.0


def test_the_plain_cases_cover_what_is_tested_here() -> None:
    assert {case.values[0] for case in PLAIN_CASES} == {case.values[0] for case in CASES}


@pytest.mark.filterwarnings("ignore:a .* matrix in:RuntimeWarning")
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 1e18, 1e30, math.inf, math.nan])
@pytest.mark.parametrize(("name", "role", "options"), ROLES_WITH_OPTIONS)
def test_no_weight_makes_a_solver_raise(name, role, options, scale) -> None:
    """And none of a finite size puts inf or NaN into the state."""
    if options.get("hyperball") and (scale in (0.0, 1e30) or (role == "factors" and scale == 1e-45)):
        pytest.skip("a zero weight is refused, and one whose squares overflow has no norm to keep")
    named = make_params(role)
    for _, p in named:
        p.data *= scale
    optimizer = build(name, role, named, options)
    for t in range(6):
        set_grads(named, t)
        optimizer.step()
    if math.isfinite(scale):
        for key, tensor in optimizer.named_state().items():
            assert tensor.isfinite().all(), key
