"""Files whose index lists groups: a rule and its options in GROUP/config, the arrays beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from replays.common import Fixture, Line, guarded, max_error, tensor
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.optim import Optimizer

Config = dict[str, Any]
Build = Callable[[nn.Parameter, Config], Optimizer]
# What else follows from a group's name, its options and the weights before and after each step (T + 1, m, n).
Also = Callable[[str, Config, Tensor], Iterator[Line]]


def configs(data: Fixture) -> dict[str, Config]:
    """Group -> its rule and options."""
    return {
        name: json.loads(str(data[f"{name}/config"])) for name in json.loads(str(data["index"]))["groups"]
    }


def taken(config: Config, names: dict[str, str], spellings: dict[str, dict[Any, Any]]) -> Config:
    """The options of a group in lowrise's names and values; one that lowrise has not is refused."""
    options = {}
    for key, value in config.items():
        if key == "rule":
            continue
        if key not in names:
            raise UsageError(f"there is no option for {key} = {value!r}")
        known = spellings.get(key)
        if known is not None and value not in known:
            raise UsageError(f"there is no {key} = {value!r}, only {', '.join(map(repr, known))}")
        options[names[key]] = value if known is None else known[value]
    return options


def replay_groups(
    data: Fixture,
    dtype: torch.dtype,
    builds: dict[str, Build],
    states: dict[str, str],
    *,
    bars: tuple[float, float],
    lr_factor: Callable[[Config], float] = lambda config: 1.0,
    also: Also | None = None,
) -> Iterator[Line]:
    """Every group: the weights after every step, and the final state. `builds` by rule; `states` from names
    of arrays to those of lowrise's state; `bars` in float64 and float32.
    """
    bar = bars[0] if dtype == torch.float64 else bars[1]
    for name, config in configs(data).items():
        case = f"{config['rule']}/{name}"
        if config["rule"] not in builds:
            yield Line(case)
            continue
        yield from guarded(
            case, _group, data, dtype, name, config, builds, states, bar, lr_factor, also, case
        )


def _group(
    data: Fixture,
    dtype: torch.dtype,
    name: str,
    config: Config,
    builds: dict[str, Build],
    states: dict[str, str],
    bar: float,
    lr_factor: Callable[[Config], float],
    also: Also | None,
    case: str,
) -> Iterator[Line]:
    start = torch.from_numpy(data[f"{name}/W0"]).double()
    weight = nn.Parameter(tensor(data[f"{name}/W0"], dtype))
    optimizer = builds[config["rule"]](weight, config)
    for key, own in states.items():
        if f"{name}/{key}0" in data:  # a start value that is not zero
            optimizer.state[weight][own].copy_(tensor(data[f"{name}/{key}0"], dtype))
    seen: list[Tensor] = []
    for lr, G in zip(data[f"{name}/lr"], data[f"{name}/G"], strict=True):
        optimizer.param_groups[0]["lr"] = float(lr) * lr_factor(config)
        weight.grad = tensor(G, dtype)
        optimizer.step()
        seen.append(weight.detach().double().clone())
    golden = torch.from_numpy(data[f"{name}/W"]).double()
    yield Line(
        f"{case}/W", max_error(torch.stack(seen), golden, start), bar + _rounding(golden, start, dtype)
    )
    for key, own in states.items():
        if f"{name}/{key}" in data:
            golden = torch.from_numpy(data[f"{name}/{key}"]).double()
            got = optimizer.state[weight][own].double().reshape(golden.shape)
            yield Line(f"{case}/{key}", max_error(got, golden, 0.0), bar)
    if also is not None:
        yield from also(name, config, torch.stack([start, *seen]))


def _rounding(golden: Tensor, start: Tensor, dtype: torch.dtype) -> float:
    """What rounding of the stored weights alone may do, over the movement: decay and subtraction, half a unit
    in the last place of the largest weight each, at every step. In float32 it passes 1e-4 where rates are
    small; then no arithmetic could meet a bar without it.
    """
    largest = golden.abs().max().to(dtype)
    unit = (torch.nextafter(largest, torch.full_like(largest, torch.inf)) - largest).item()
    return len(golden) * unit / (golden - start).abs().max().item()
