"""Cases of one matrix that an optimizer moves along recorded gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from replays.common import Fixture, tensor
from torch import Tensor, nn

from lowrise.optim import Optimizer


@dataclass(frozen=True)
class Moved:
    """What a case left behind: `start` and all W in float64, and the optimizer after each step."""

    weight: nn.Parameter
    start: Tensor
    trajectory: Tensor
    optimizer: Optimizer


def places_of(data: Fixture, name: str) -> list[str]:
    """The weights of a case: p0, p1, ..."""
    return sorted({key.split("/")[1] for key in data if key.startswith(f"{name}/p") and key.count("/") == 2})


def replay_trajectory(
    data: Fixture,
    name: str,
    place: str,
    dtype: torch.dtype,
    build: Callable[[nn.Parameter], Optimizer],
    *,
    lr_factor: float = 1.0,
) -> Iterator[Moved]:
    """Steps with a case's gradients and its learning rates times `lr_factor`; yields after each one."""
    weight = nn.Parameter(tensor(data[f"{name}/{place}/W0"], dtype))
    start = torch.from_numpy(data[f"{name}/{place}/W0"]).double()
    optimizer = build(weight)
    seen: list[Tensor] = []
    for lr, G in zip(data[f"{name}/lr"], data[f"{name}/{place}/G"], strict=True):
        optimizer.param_groups[0]["lr"] = float(lr) * lr_factor
        weight.grad = tensor(G, dtype)
        optimizer.step()
        seen.append(weight.detach().double().clone())
        yield Moved(weight, start, torch.stack(seen), optimizer)
