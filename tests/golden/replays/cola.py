"""CoLA: forward and backward passes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import torch
from replays.common import Fixture, Line, guarded, max_error, tensor
from torch import Tensor, nn

from lowrise.layers import CoLALinear, factorize
from lowrise.model.llama import MLP


def replay_cola(data: Fixture, dtype: torch.dtype) -> Iterator[Line]:
    """The `layers` and `mlps` of `index`: output and every gradient. The file's a is our B and its b our A.T.

    Bars (methods/cola.md, section 6), relative to the largest value: 1e-12 in float64, 1e-5 in float32.
    """
    index = json.loads(str(data["index"]))
    activation = index["activation"]
    for kind, replay in (("layers", _cola_layer), ("mlps", _cola_mlp)):
        for case in index.get(kind, []):
            yield from guarded(f"cola/{case['name']}", replay, data, dtype, case, activation)


def _cola_layer(data: Fixture, dtype: torch.dtype, case: dict, activation: str) -> Iterator[Line]:
    name = case["name"]
    layer = CoLALinear(
        case["in"],
        case["out"],
        case["rank"],
        case["bias"],
        activation=activation if case["act"] else "none",
        dtype=dtype,
    )
    _load_cola(layer, data, f"{name}/", dtype)
    if layer.bias is not None:
        layer.bias.data.copy_(tensor(data[f"{name}/bias"], dtype))
    seen = _backward(layer, data, name, dtype) | _cola_gradients(layer, "")
    yield from _cola_lines(data, name, seen, dtype)


def _cola_mlp(data: Fixture, dtype: torch.dtype, case: dict, activation: str) -> Iterator[Line]:
    name, d, ff, rank = case["name"], case["d"], case["ff"], case["rank"]
    mlp = MLP(d, ff, "none" if case["only_lr_act"] else "silu").to(dtype)
    factorize(mlp, layer="cola", rank=rank, activation=activation)
    places = ("gate", "up", "down")
    for place in places:
        _load_cola(getattr(mlp, f"{place}_proj"), data, f"{name}/{place}_", dtype)
    seen = _backward(mlp, data, name, dtype)
    for place in places:
        seen |= _cola_gradients(getattr(mlp, f"{place}_proj"), f"{place}_")
    yield from _cola_lines(data, name, seen, dtype)


def _load_cola(layer: CoLALinear, data: Fixture, prefix: str, dtype: torch.dtype) -> None:
    layer.B.data.copy_(tensor(data[f"{prefix}a"], dtype))
    layer.A.data.copy_(tensor(data[f"{prefix}b"], dtype).T)


def _backward(module: nn.Module, data: Fixture, name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    x = tensor(data[f"{name}/x"], dtype).requires_grad_()
    y = module(x)
    y.backward(tensor(data[f"{name}/gy"], dtype))
    assert x.grad is not None
    return {"y": y.detach(), "gx": x.grad}


def _cola_gradients(layer: CoLALinear, prefix: str) -> dict[str, Tensor]:
    assert layer.A.grad is not None
    assert layer.B.grad is not None
    seen = {f"{prefix}ga": layer.B.grad, f"{prefix}gb": layer.A.grad.T}
    if layer.bias is not None and layer.bias.grad is not None:
        seen[f"{prefix}gbias"] = layer.bias.grad
    return seen


def _cola_lines(data: Fixture, name: str, seen: dict[str, Tensor], dtype: torch.dtype) -> Iterator[Line]:
    bar = 1e-12 if dtype == torch.float64 else 1e-5
    inputs = ("x", "gy", "a", "b", "bias", "gate_a", "gate_b", "up_a", "up_b", "down_a", "down_b")
    for key in sorted(k.removeprefix(f"{name}/") for k in data if k.startswith(f"{name}/")):
        if key in inputs:
            continue
        if key not in seen:
            yield Line(f"cola/{name}/{key}")
            continue
        golden = torch.from_numpy(np.asarray(data[f"{name}/{key}"], dtype=np.float64))
        yield Line(f"cola/{name}/{key}", max_error(seen[key].double(), golden, 0.0), bar)
