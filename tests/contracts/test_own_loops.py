"""What own training loops hand to an optimizer or to `factorize`: torch's schedulers that cycle, numbers of
numpy, ranks larger than a matrix."""

from __future__ import annotations

import math
import typing

import numpy as np
import pytest
import torch
from contracts.test_optimizers import build, make_params, set_grads
from torch import nn
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

import lowrise
from lowrise.errors import UsageError
from lowrise.layers.registry import LAYERS
from lowrise.optim import OPTIMIZERS

CASES = [(name, role) for name in OPTIMIZERS for role in sorted(OPTIMIZERS[name].roles)]
SCHEDULERS = {
    "one cycle": lambda o: OneCycleLR(o, 1e-2, total_steps=10),
    "cyclic": lambda o: CyclicLR(o, 1e-3, 1e-2, step_size_up=5),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize(("name", "role"), CASES)
def test_cycling_schedulers_cycle_betas_and_leave_the_momentum_of_a_rule(name, role, kind):
    named = make_params(role)
    optimizer = build(name, role, named, {})
    before = [(group["betas"], group.get("momentum")) for group in optimizer.param_groups]
    scheduler = SCHEDULERS[kind](optimizer)
    rates = []
    for t in range(3):
        set_grads(named, t)
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert len(set(rates)) == 3
    for group, (betas, momentum) in zip(optimizer.param_groups, before, strict=True):
        assert group["betas"][0] != betas[0]
        assert group["betas"][1] == betas[1]
        assert group.get("momentum") == momentum
    assert all(p.isfinite().all() for _, p in named)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("given", "rank"),
    [(np.int64(3), 3), (np.int32(3), 3), (np.float64(0.5), 4), (np.float32(0.5), 4)],
)
def test_ranks_may_be_numbers_of_numpy(layer, given, rank):
    model = lowrise.factorize(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), layer=layer, rank=given)
    assert [m.rank for m in model] == [rank, rank]
    assert type(model[0].rank) is int


ABSURD = [math.nan, math.inf, -1.0, 1e30, -1, 1001, 2**31, 2**70]
ABSURD_TUPLES = [(math.nan,) * 2, (math.nan,) * 3, (0.0, math.inf, 1.0)]


def absurd_options(name):
    """The constructor's options that are numbers, each with absurd values of its kind."""
    for key, kind in typing.get_type_hints(OPTIMIZERS[name].__init__).items():
        text = str(kind)
        if key in ("params", "return", "lr") or "Literal" in text:
            continue
        values = ABSURD_TUPLES if "tuple" in text else ABSURD
        yield from ((key, value) for value in values if "tuple" in text or type(value).__name__ in text)


def refusal(name, role, options) -> str:
    """What is said to the options; empty after an update that leaves the state finite."""
    named = make_params(role)
    try:
        optimizer = build(name, role, named, options)
    except UsageError as error:
        return str(error)
    set_grads(named, 0)
    optimizer.step()
    for key, tensor in optimizer.named_state().items():
        assert tensor.isfinite().all(), key
    return ""


@pytest.mark.parametrize(("name", "role"), CASES)
def test_absurd_options_are_refused_or_harmless(name, role):
    """No exception but a message, no update that stands still, and no number that is none in the state."""
    for key, value in absurd_options(name):
        said = refusal(name, role, {key: value})
        finite = all(map(math.isfinite, value if isinstance(value, tuple) else (value,)))
        assert finite or said, (key, value)
        assert not said or str(value) in said, (key, value, said)


RANKED = [name for name in OPTIMIZERS if "rank" in OPTIMIZERS[name].__init__.__annotations__]


@pytest.mark.parametrize("name", RANKED)
def test_ranks_of_optimizers_are_numbers_and_no_switches(name):
    matrix = nn.Parameter(torch.ones(8, 8))
    assert OPTIMIZERS[name]([matrix], lr=1e-3, rank=np.int64(3)).param_groups[0]["rank"] == 3
    for wrong in (True, np.bool_(True), "3", float("nan"), -1, 1.5):
        with pytest.raises(UsageError, match="rank"):
            OPTIMIZERS[name]([matrix], lr=1e-3, rank=wrong)


@pytest.mark.parametrize("name", RANKED)
def test_a_rank_above_a_side_keeps_no_more_state_than_the_side(name):
    """The default of 128 meets it in factors of LoRA and in the key heads of grouped attention."""
    sizes = [
        OPTIMIZERS[name]([nn.Parameter(torch.ones(16, 64))], lr=1e-3, rank=rank).state_bytes()
        for rank in (16, 256)
    ]
    assert sizes[0] == sizes[1]


def test_only_subclasses_of_linear_are_named_as_the_reason():
    class Own(nn.Linear):
        pass

    with pytest.raises(UsageError, match=r"2 subclasses of nn\.Linear, such as Own"):
        lowrise.factorize(nn.Sequential(Own(8, 8), Own(8, 8)), rank=2)
