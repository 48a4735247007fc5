"""Hyperball: trajectories of dense matrices and of a product, and the tail EMA in the same file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from replays.common import Fixture, Line, guarded, max_error, tensor
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.linalg import polar_svd
from lowrise.optim import AdamW, LoRAMuon, Muon, Optimizer
from lowrise.runs.tail_average import Tail, TailAverage

MOMENTS = {"momentum": "momentum", "adam_m": "exp_avg"}  # in the file -> in the state


def replay_hyperball(data: Fixture, dtype: torch.dtype) -> Iterator[Line]:
    """The groups of `index` whose config has `hyperball`, and that of the tail average. Bars, relative to the
    largest movement: 1e-9 in float64, 1e-4 in float32.
    """
    for name in json.loads(str(data["index"]))["groups"]:
        config = json.loads(str(data[f"{name}/config"]))
        if config.get("hyperball"):
            replay = _pair if config["rule"] == "loramuon" else _matrix
        elif config["rule"] == "tail_ema":
            replay = _tail
        else:
            yield Line(f"hyperball/{name}")
            continue
        yield from guarded(f"hyperball/{name}", replay, data, dtype, name, config)


def _matrix(data: Fixture, dtype: torch.dtype, name: str, config: dict[str, Any]) -> Iterator[Line]:
    W = nn.Parameter(tensor(data[f"{name}/W0"], dtype))
    start = torch.from_numpy(data[f"{name}/W0"])
    optimizer = _optimizer(W, config)
    weights = []
    for t, lr in enumerate(data[f"{name}/lr"]):
        optimizer.param_groups[0]["lr"] = float(lr)
        W.grad = tensor(data[f"{name}/G"][t], dtype)
        optimizer.step()
        weights.append(W.detach().double().clone())
    yield Line(
        f"hyperball/{name}/W",
        max_error(torch.stack(weights), torch.from_numpy(data[f"{name}/W"]), start),
        _bar(dtype),
    )
    norms = torch.stack([torch.linalg.vector_norm(w) for w in weights])
    yield Line(f"hyperball/{name}/norm", max_error(norms, start.norm().expand_as(norms), 0.0), _bar(dtype))
    for key, own in MOMENTS.items():
        if f"{name}/{key}" in data:
            golden = torch.from_numpy(data[f"{name}/{key}"])
            got = optimizer.state[W][own].double()
            yield Line(f"hyperball/{name}/{key}", max_error(got, golden, 0.0), _bar(dtype))


def _tail(data: Fixture, dtype: torch.dtype, name: str, config: dict[str, Any]) -> Iterator[Line]:
    """Given weights after each update; the average and the weights that are evaluated, from `start` on."""
    weights = torch.from_numpy(data[f"{name}/W_seq"])
    model = nn.ParameterDict({"W": tensor(weights[0].numpy(), dtype)})
    group = {"params": [("W", model["W"])]}
    first = config["start"] + 1  # updates count from 1, the file's from 0
    tail = TailAverage(Tail(first, config["horizon"], config["blend"]), AdamW([group], lr=1.0))
    averages, blends = [], []
    for number, W in enumerate(weights, start=1):
        model["W"].data.copy_(W)
        tail.after_update(number, ())
        if number >= first:
            averages.append(tail.tensors["W"].double().clone())
            with tail.in_the_model(model):
                blends.append(model["W"].detach().double().clone())
    for key, got in (("ema", averages), ("blend", blends)):
        golden = torch.from_numpy(data[f"{name}/{key}"])
        yield Line(f"hyperball/{name}/{key}", max_error(torch.stack(got), golden, 0.0), _bar(dtype))


def _optimizer(W: nn.Parameter, config: dict[str, Any]) -> Optimizer:
    group = {"params": [W], "role": "matrix", "hyperball": True}
    if config["rule"] == "adam":
        return AdamW([group], betas=tuple(config["betas"]), eps=config["eps"])
    if config["rule"] != "muon":
        raise UsageError(f"there is no replay for the rule {config['rule']!r}")
    kind = ExactMuon if config.get("msign") == "svd" else Muon
    return kind([group], momentum=config["momentum"])


class ExactMuon(Muon):
    """Muon along the exact polar factor: any rule that has a direction can be wrapped."""

    def direction(self, G: Tensor, state: dict[str, Tensor], options: Mapping[str, Any], step: int) -> Tensor:
        M = state["momentum"].lerp_(G, 1.0 - options["momentum"])
        return polar_svd(torch.lerp(G, M, options["momentum"]))


def _pair(data: Fixture, dtype: torch.dtype, name: str, config: dict[str, Any]) -> Iterator[Line]:
    A0, B0 = tensor(data[f"{name}/A0"], dtype), tensor(data[f"{name}/B0"], dtype)
    factors, products, moments = _walk(A0, B0, data, dtype, name, config)
    start = {"A": torch.from_numpy(data[f"{name}/A0"]), "B": torch.from_numpy(data[f"{name}/B0"])}
    golden = {key: torch.from_numpy(data[f"{name}/{key}"]) for key in ("A", "B", "mA", "mB")}
    for place, key in enumerate(("A", "B")):
        got = torch.stack([pair[place] for pair in factors])
        yield Line(f"hyperball/{name}/{key}", max_error(got, golden[key], start[key]), _bar(dtype))
        yield Line(f"hyperball/{name}/m{key}", max_error(moments[place], golden[f"m{key}"], 0.0), _bar(dtype))
    W0 = start["A"] @ start["B"].mT
    norms = torch.stack([torch.linalg.vector_norm(W) for W in products])
    yield Line(f"hyperball/{name}/norm", max_error(norms, W0.norm().expand_as(norms), 0.0), _bar(dtype))
    if f"{name}/M" in data:
        M = tensor(data[f"{name}/M"], torch.float64)
        A, B = start["A"] @ M, start["B"] @ torch.linalg.inv(M).mT
        _, moved, _ = _walk(A, B, data, torch.float64, name, config)
        wanted = golden["A"] @ golden["B"].mT
        yield Line(f"hyperball/{name}/gauge", max_error(torch.stack(moved), wanted, W0), 1e-9)


def _walk(A0: Tensor, B0: Tensor, data: Fixture, dtype: torch.dtype, name: str, config: dict[str, Any]):
    """(A, B) and A B^T after every step, and the momenta at the end."""
    A, B = nn.Parameter(A0.clone()), nn.Parameter(B0.clone())
    group = {"params": [A, B], "role": "factors", "hyperball": True}
    optimizer = LoRAMuon([group], momentum=config["momentum"], msign="svd", root="eigh", scale="none")
    factors, products = [], []
    for t, lr in enumerate(data[f"{name}/lr"]):
        optimizer.param_groups[0]["lr"] = float(lr)
        G = tensor(data[f"{name}/G"][t], dtype)
        A.grad, B.grad = G @ B.detach(), G.mT @ A.detach()
        optimizer.step()
        pair = A.detach().double().clone(), B.detach().double().clone()
        factors.append(pair)
        products.append(pair[0] @ pair[1].mT)
    return factors, products, [optimizer.state[X]["momentum"].double() for X in (A, B)]


def _bar(dtype: torch.dtype) -> float:
    return 1e-9 if dtype == torch.float64 else 1e-4
