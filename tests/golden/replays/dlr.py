"""DLR: outputs and gradients through a short descent, and the folded layer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from replays.common import Fixture, Line, guarded, max_error, tensor

from lowrise.layers import DLRLinear


def replay_dlr(data: Fixture, dtype: torch.dtype) -> Iterator[Line]:
    """The groups of `index`. Bars: 1e-9 in float64 and 1e-4 in float32, of the largest movement for factors
    and of the largest value for outputs and gradients.
    """
    for name in json.loads(str(data["index"]))["groups"]:
        config = json.loads(str(data[f"{name}/config"]))
        yield from guarded(f"dlr/{name}", _descent, data, dtype, name, config)


def _descent(data: Fixture, dtype: torch.dtype, name: str, config: dict[str, Any]) -> Iterator[Line]:
    golden = {key: torch.from_numpy(data[f"{name}/{key}"]) for key in ("A", "B", "y", "gx", "E", "A_folded")}
    start = {key: torch.from_numpy(data[f"{name}/{key}0"]) for key in ("A", "B")}
    (m, r), n = start["A"].shape, start["B"].shape[0]
    layer = DLRLinear(
        n,
        m,
        r,
        bias=f"{name}/bias" in data,
        activation=config["activation"],
        alpha=config["alpha"],
        dtype=dtype,
    )
    with torch.no_grad():
        layer.A.copy_(start["A"])
        layer.B.copy_(start["B"])
        if layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(data[f"{name}/bias"]))
    seen: dict[str, list[torch.Tensor]] = {"y": [], "gx": [], "A": [], "B": []}
    for t, lr in enumerate(data[f"{name}/lr"]):
        x = tensor(data[f"{name}/x"][t], dtype).requires_grad_()
        y = layer(x)
        gx, gA, gB = torch.autograd.grad(
            (tensor(data[f"{name}/C"][t], dtype) * y).sum(), (x, layer.A, layer.B)
        )
        with torch.no_grad():
            layer.A.sub_(gA * float(lr))
            layer.B.sub_(gB * float(lr))
        for key, value in (("y", y), ("gx", gx), ("A", layer.A), ("B", layer.B)):
            seen[key].append(value.detach().double().clone())
    bar = 1e-9 if dtype == torch.float64 else 1e-4
    for key, values in seen.items():
        error = max_error(torch.stack(values), golden[key], start.get(key, 0.0))
        yield Line(f"dlr/{name}/{key}", error, bar)
    E = (layer.folded_factor() - layer.A).detach().double()
    yield Line(f"dlr/{name}/E", max_error(E, golden["E"], 0.0), bar)
    layer.fold()
    yield Line(f"dlr/{name}/A_folded", max_error(layer.A.double(), golden["A_folded"], 0.0), bar)
    y = layer(tensor(data[f"{name}/x"][0], dtype)).double()
    wanted = torch.from_numpy(data[f"{name}/y_folded"])
    yield Line(f"dlr/{name}/y_folded", max_error(y, wanted, 0.0), bar)
