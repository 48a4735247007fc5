"""What every optimizer promises, for the roles that it moves and those that it leaves to built-in AdamW."""

from __future__ import annotations

import copy
import io
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.optim import OPTIMIZERS, Optimizer
from lowrise.optim.engine import state_formats as formats
from lowrise.optim.engine.options import UNIT_SIZE

# Besides the defaults: options under which an optimizer keeps another state or takes another path.
EXTRA: dict[str, list[dict[str, Any]]] = {
    "relora": [{"decay": "product"}],
    "spectron": [
        {"variant": "certified", "norm_refresh": 3},
        {"rebalance_every": 2},
        {"renormalize": False},
        {"decay": "product"},
    ],
    "adamw": [{"state_format": "bfloat16"}, {"state_format": "8bit"}, {"decay": "product"}],
    "muon": [{"nesterov": False}, {"state_format": "8bit"}, {"decay": "product"}],
    "loro": [
        {"exact_every": 3},
        {"exact_every": 2, "exact_direction": "consistent", "retraction": "orthographic", "reset": "factors"},
        {"exact_every": 2, "kth_update": "rebalance", "reset": "none", "transport": True},
        {"exact_every": 6, "stagger": True, "restart_warmup": 2},
        {"exact_every": 2, "decay": "product"},
    ],
    "loramuon": [
        {"direction": "tangent", "nesterov": True, "decay": "product"},
        {"bound": "whole", "root": "cholesky", "scale": "none"},
        {"rebalance_every": 2, "root": "ns7", "msign": "polar8"},
    ],
    "galore": [{"rank": 4, "update_proj_gap": 2, "state_format": "8bit"}],
    "normuon": [{"accumulate": "sum", "nesterov": False, "ortho": "svd"}, {"state_format": "8bit"}],
    "dion2": [{"fraction": 1.0}, {"shards": 3, "ortho": "pe"}],
    "stablespam": [
        {"reset_every": 3, "total_steps": 8},
        {"reset_every": 2, "reset_counter": "separate", "reset_moments": "after"},
        {"state_format": "8bit", "reset_every": 3},
    ],
    "gwt": [{"level": 0}, {"level": 3, "limiter": "reference", "correct_details": False}],
    "sinkgd": [{"rows_first": False}, {"target": "muon"}],
    "swan": [{"axis": 0, "method": "nsds"}, {"method": "exact", "center": False, "rescale": False}],
    "tsvd": [
        {"project": "both", "retraction": "polar", "transport": True},
        {"state_format": "bfloat16", "transport": True},
    ],
}
# Updates between two resets of all moments, by default; every other optimizer never resets.
RESETS = {"loro": 500, "stablespam": 1000}
for name, kind in OPTIMIZERS.items():
    if kind.ball_roles:
        EXTRA.setdefault(name, []).append({"hyperball": True})
CASES = [
    pytest.param(name, role, options, id=f"{name}-{role}-{'-'.join(options) or 'default'}")
    for name in OPTIMIZERS
    for options in [{}, *EXTRA.get(name, [])]
    for role in sorted(UNIT_SIZE)
    if not options.get("hyperball") or role in OPTIMIZERS[name].ball_roles & OPTIMIZERS[name].roles
]
SHAPES = {
    "matrix": [(8, 6), (6, 8), (8, 6)],
    "factors": [(8, 3), (6, 3), (8, 3), (6, 3), (6, 2), (10, 2)],
    "svd": [(8, 3), (3,), (6, 3)],
    "other": [(8, 6), (7,), ()],
    "embedding": [(12, 6), (9, 6)],
    "head": [(12, 6), (12, 6)],
}


@pytest.fixture(autouse=True)
def compress_small_moments_too(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that formats take effect on these shapes. Options are of all tests or of none."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and "state_format" in callspec.params.get("options", {}):
        monkeypatch.setattr(formats, "LEAST_ELEMENTS", 1)


def make_params(role: str, dtype: torch.dtype = torch.float32) -> list[tuple[str, nn.Parameter]]:
    g = torch.Generator().manual_seed(7)
    return [
        (f"layer{i}.weight", nn.Parameter(torch.randn(shape, generator=g).to(dtype)))
        for i, shape in enumerate(SHAPES[role])
    ]


def build(name: str, role: str, named: list[tuple[str, nn.Parameter]], options: dict[str, Any]) -> Optimizer:
    fixed = options.get("hyperball", False) and role in OPTIMIZERS[name].ball_roles & OPTIMIZERS[name].roles
    options = {"lr": 0.05, "weight_decay": 0.0 if fixed else 0.1, **options}
    options.pop("hyperball", None)
    group = {"params": named, "role": role, "state_format": options.pop("state_format", "float32")}
    if fixed:
        group["hyperball"] = True
    return OPTIMIZERS[name]([group], **options)


def set_grads(named: list[tuple[str, nn.Parameter]], t: int) -> None:
    g = torch.Generator().manual_seed(100 + t)
    for _, p in named:
        p.grad = torch.randn(p.shape, generator=g).to(p.dtype)


def run(optimizer: Optimizer, named: list[tuple[str, nn.Parameter]], steps: range) -> None:
    for t in steps:
        set_grads(named, t)
        optimizer.step()


def weights(named: list[tuple[str, nn.Parameter]]) -> list[Tensor]:
    return [p.detach().clone() for _, p in named]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


@pytest.mark.parametrize(("name", "role", "options"), CASES)
@pytest.mark.parametrize("way", ["state_dict", "named_state"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_bitwise_through_a_weights_only_file(name, role, options, way, dtype) -> None:
    named = make_params(role, dtype)
    optimizer = build(name, role, named, options)
    run(optimizer, named, range(4))
    file = io.BytesIO()
    torch.save({"model": dict(named), "optimizer": getattr(optimizer, way)()}, file)
    run(optimizer, named, range(4, 9))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = make_params(role, dtype)
    for key, p in again:
        p.data.copy_(saved["model"][key])
    resumed = build(name, role, again, options)
    {"state_dict": resumed.load_state_dict, "named_state": resumed.load_named_state}[way](saved["optimizer"])
    run(resumed, again, range(4, 9))
    assert same(weights(again), weights(named))
    left, right = optimizer.named_state(), resumed.named_state()
    assert list(left) == list(right)
    assert same(list(left.values()), list(right.values()))


@pytest.mark.parametrize(("name", "role", "options"), CASES)
def test_state_is_complete_counted_and_planned(name, role, options) -> None:
    for dtype, width in ((torch.float32, 4), (torch.bfloat16, 4), (torch.float64, 8)):
        if "state_format" in options and dtype == torch.float64:
            continue  # refused
        named = make_params(role, dtype)
        optimizer = build(name, role, named, options)
        at_start = {key: id(value) for key, value in optimizer.named_state().items()}
        shapes = [p.shape for _, p in named]
        planned = OPTIMIZERS[name].planned_state_elements(role, shapes, options)
        planned_bytes = OPTIMIZERS[name].planned_state_bytes(role, shapes, options, dtype=dtype)
        assert optimizer.state_elements() == planned
        assert optimizer.state_bytes() == planned_bytes
        if "state_format" not in options:
            assert planned_bytes == width * planned
        run(optimizer, named, range(3))
        assert {key: id(value) for key, value in optimizer.named_state().items()} == at_start, (
            "created after __init__"
        )
        assert optimizer.state_bytes() == planned_bytes
        for key, tensor in optimizer.named_state().items():
            compressed = "state_format" in options and key.split(".")[-1].startswith(("exp_avg", "momentum"))
            assert tensor.dtype in (torch.float32, torch.float64) or compressed
            assert tensor.isfinite().all(), key
        assert optimizer.step_flops() > sum(p.numel() for _, p in named)


@pytest.mark.parametrize(("name", "role", "options"), CASES)
def test_gradients_are_read_only_and_two_runs_agree_bitwise(name, role, options) -> None:
    runs = []
    for _ in range(2):
        named = make_params(role)
        optimizer = build(name, role, named, options)
        start = weights(named)
        for t in range(4):
            set_grads(named, t)
            before = [p.grad.clone() for _, p in named]
            optimizer.step()
            assert same(before, [p.grad for _, p in named])
        assert all(not torch.equal(x, y) for x, y in zip(start, weights(named), strict=True))
        runs.append(weights(named))
    assert same(*runs)


@pytest.mark.parametrize(("name", "role", "options"), CASES)
def test_gradients_of_any_size_leave_finite_weights(name, role, options) -> None:
    """Up to where squares overflow in float32 at first, then down to subnormal numbers and zero."""
    named = make_params(role)
    optimizer = build(name, role, named, options)
    for t, scale in enumerate((1.0, 1e15, 1e-30, 1e-42, 0.0, 1.0)):
        set_grads(named, t)
        for _, p in named:
            p.grad.mul_(scale)
        optimizer.step()
        assert all(p.isfinite().all() for _, p in named), scale


@pytest.mark.parametrize(("name", "role", "options"), CASES)
def test_missing_gradients(name, role, options) -> None:
    named = make_params(role)
    optimizer = build(name, role, named, options)
    start, state = weights(named), {k: v.clone() for k, v in optimizer.named_state().items()}
    optimizer.step()
    assert same(start, weights(named)), "no gradient at all: nothing moves, not even by decay"
    assert same(list(state.values()), list(optimizer.named_state().values()))
    if UNIT_SIZE[role] == 1:
        set_grads(named, 0)
        named[0][1].grad = None
        optimizer.step()
        assert torch.equal(named[0][1], start[0])
        assert not torch.equal(named[1][1], start[1])
        return
    results = []
    for missing in (None, torch.zeros_like(named[0][1])):
        params = make_params(role)
        other = build(name, role, params, options)
        set_grads(params, 0)
        params[0][1].grad = missing
        other.step()
        results.append(weights(params))
    assert same(*results), "within a unit a missing gradient is a zero gradient"


@pytest.mark.parametrize(("name", "role", "options"), CASES)
def test_lr_scheduler_closure_zero_lr_and_copy(name, role, options) -> None:
    named = make_params(role)
    optimizer = build(name, role, named, options)
    # The first step has lr 0, as in a warm-up.
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, t / 2))
    start = weights(named)
    set_grads(named, 0)
    assert optimizer.step(lambda: torch.tensor(2.5)).item() == 2.5
    if "rebalance_every" not in options:
        assert same(start, weights(named)), "lr 0 moves nothing"
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.025

    twin_params, twin = copy.deepcopy((named, optimizer))
    run(optimizer, named, range(1, 4))
    run(twin, twin_params, range(1, 4))
    assert same(weights(named), weights(twin_params))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_closure_sees_gradients_enabled(name: str) -> None:
    named = make_params("factors")
    optimizer = build(name, "factors", named, {})
    start = weights(named)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum((p**2).sum() for _, p in named)
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    assert not same(start, weights(named))


@pytest.mark.parametrize(("name", "role"), list(itertools.product(OPTIMIZERS, ["factors", "other"])))
def test_a_state_that_does_not_fit_is_refused_whole(name: str, role: str) -> None:
    named = make_params(role)
    optimizer = build(name, role, named, {})
    run(optimizer, named, range(2))
    before = {k: v.clone() for k, v in optimizer.named_state().items()}
    saved = copy.deepcopy(optimizer.state_dict())
    key = next(k for k in saved["state"][0] if k != "step")
    saved["state"][0][key] = torch.zeros(99)
    with pytest.raises(UsageError, match=rf"layer0.weight.{key} has shape \(99,\)"):
        optimizer.load_state_dict(saved)
    for change, sentence in (
        ({f"layer0.weight.{key}": None}, "is missing"),
        ({"layer9.weight.momentum": torch.zeros(1)}, "layer9.weight.momentum is not expected"),
        ({f"layer0.weight.{key}": before[f"layer0.weight.{key}"].double()}, "dtype torch.float64"),
    ):
        broken = {k: v for k, v in {**before, **change}.items() if v is not None}
        with pytest.raises(UsageError, match=sentence):
            optimizer.load_named_state(broken)
    assert same(list(before.values()), list(optimizer.named_state().values()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_has_attributes_that_a_copy_would_lose(name: str) -> None:
    """copy.deepcopy and pickle of a torch optimizer keep `defaults`, `state` and `param_groups` only. Who
    owns what among ranks is found again.
    """
    named = make_params("factors")
    optimizer = build(name, "factors", named, {})
    plain = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    found_again = {"ownership", "_built", "_guard"}  # of ranks; settled before a copy is made
    assert set(vars(optimizer)) - found_again <= set(vars(plain))
    assert vars(copy.deepcopy(optimizer)).keys() >= found_again
    resets = optimizer.resets(3000)
    assert resets == (() if name not in RESETS else tuple(range(RESETS[name], 3000, RESETS[name])))
