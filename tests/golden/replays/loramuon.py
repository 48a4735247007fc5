"""LoRA-Muon: trajectories of pairs along recorded gradients, and of the same pairs in another gauge."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from replays.common import Fixture, Line, guarded, max_error, tensor
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.optim import LoRAMuon

# Names of the fixtures for ours; what is not here is refused by name.
DIRECTIONS = {"loramuon": "halves", "tangent": "tangent"}
ROOTS = {"eigh": ("eigh", "cholesky"), "ns7": ("ns7",)}
KNOWN = {
    "rule", "momentum", "nesterov", "weight_decay", "msign", "root", "root_eps", "root_gamma", "scale",
    "rebalance_every", "rebalance_alpha", "direction", "product_decay",
}  # fmt: skip
FIXED = {"root_eps": 1e-5, "root_gamma": 1.001}


def replay_loramuon(data: Fixture, dtype: torch.dtype) -> Iterator[Line]:
    """The groups of `index`: A, B and the product after each step, the momenta at the end, and, with `M`, the
    product from A0 M, B0 M^-T. Exact roots are replayed by eigenvectors and by Cholesky factors.

    Bars (methods/factor_optimizers_2026.md, Fixtures): of the largest movement 1e-9 in float64, 1e-8 for the
    tangent direction and the quintic; 1e-4 in float32, 5e-4 with the seven-step root.
    """
    for group in json.loads(str(data["index"]))["groups"]:
        yield from guarded(f"loramuon/{group}", _group, data, dtype, group)


def _group(data: Fixture, dtype: torch.dtype, group: str) -> Iterator[Line]:
    config = json.loads(str(data[f"{group}/config"]))
    for root, options in _options(config):
        name = f"loramuon/{group}" + ("" if root == config.get("root", "eigh") else f"/{root}")
        bar = _bar(config, dtype)
        A, B, optimizer, seen = _trajectory(data, dtype, group, options)
        start = {key: torch.from_numpy(data[f"{group}/{key}0"]).double() for key in "AB"}
        golden = {key: torch.from_numpy(data[f"{group}/{key}"]).double() for key in "AB"}
        for key, got in zip("AB", seen, strict=True):
            yield Line(f"{name}/{key}", max_error(got, golden[key], start[key]), bar)
        W, W0 = golden["A"] @ golden["B"].mT, start["A"] @ start["B"].mT
        yield Line(f"{name}/W", max_error(seen[0] @ seen[1].mT, W, W0), bar)
        for key, X in (("mA", A), ("mB", B)):
            momentum = optimizer.state[X]["momentum"].double()
            yield Line(
                f"{name}/{key}", max_error(momentum, torch.from_numpy(data[f"{group}/{key}"]), 0.0), bar
            )
        if f"{group}/M" in data and dtype == torch.float64:
            moved = _trajectory(data, dtype, group, options, torch.from_numpy(data[f"{group}/M"]).double())[3]
            yield Line(f"{name}/gauge", max_error(moved[0] @ moved[1].mT, W, W0), bar)


def _options(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Root -> options of `LoRAMuon` for a group's configuration; `UsageError` for what there is none of."""
    unknown = [key for key in config if key not in KNOWN]
    unknown += [key for key, value in FIXED.items() if config.get(key, value) != value]
    if config["rule"] != "loramuon" or unknown:
        what = {key: config[key] for key in ["rule", *unknown]}
        raise UsageError(f"lowrise's LoRAMuon has no option for {what}")
    if config.get("weight_decay") and config.get("product_decay"):
        raise UsageError("LoRAMuon decays the weight or the product's norm, not both at once")
    decay = "product" if config.get("product_decay") else "split"
    options = {
        key: config[key]
        for key in ("momentum", "nesterov", "rebalance_every", "rebalance_alpha")
        if key in config
    }
    for root in ROOTS[config.get("root", "eigh")]:
        yield (
            root,
            options
            | {
                "root": root,
                "decay": decay,
                "weight_decay": config.get("product_decay") or config.get("weight_decay", 0.0),
                "msign": config.get("msign", "svd"),
                "scale": config.get("scale", "none"),
                "direction": DIRECTIONS[config.get("direction", "loramuon")],
            },
        )


def _trajectory(
    data: Fixture, dtype: torch.dtype, group: str, options: Mapping[str, Any], gauge: Tensor | None = None
) -> tuple[nn.Parameter, nn.Parameter, LoRAMuon, tuple[Tensor, Tensor]]:
    """The pair after all steps, its optimizer, and A and B after each, in float64."""
    A0, B0 = (torch.from_numpy(data[f"{group}/{key}0"]).double() for key in "AB")
    if gauge is not None:
        A0, B0 = A0 @ gauge, torch.linalg.solve(gauge, B0.mT).mT
    A, B = (nn.Parameter(X.to(dtype, copy=True)) for X in (A0, B0))
    optimizer = LoRAMuon([{"params": [A, B], "role": "factors"}], **{"momentum": 0.9, **options})
    seen: tuple[list[Tensor], list[Tensor]] = ([], [])
    for t, lr in enumerate(data[f"{group}/lr"]):
        optimizer.param_groups[0]["lr"] = float(lr)
        if f"{group}/G" in data:
            G = tensor(data[f"{group}/G"][t], dtype)
            A.grad, B.grad = G @ B.detach(), G.mT @ A.detach()
        else:
            A.grad, B.grad = (tensor(data[f"{group}/G{key}"][t], dtype) for key in "AB")
        optimizer.step()
        for X, kept in zip((A, B), seen, strict=True):
            kept.append(X.detach().double().clone())
    return A, B, optimizer, (torch.stack(seen[0]), torch.stack(seen[1]))


def _bar(config: Mapping[str, Any], dtype: torch.dtype) -> float:
    if dtype == torch.float32:
        return 5e-4 if config.get("root") == "ns7" else 1e-4
    careful = config.get("direction") == "tangent" or config.get("msign") == "quintic5"
    return 1e-8 if careful else 1e-9
