"""GaLore, Fira and APOLLO: trajectories with the recorded bases, and with bases of our own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from replays.common import Fixture, Line, guarded, tensor
from torch import Tensor, nn

from lowrise.linalg.subspace import align_signs, leading_left
from lowrise.optim import APOLLO, Fira, GaLore
from lowrise.optim.engine.projected_adam import ProjectedAdam

# galore.md, fira.md, apollo.md: largest absolute weight error over all steps. float32 weights move by up to
# 2.2 (apollo), 1 elsewhere; with bases of our own a small gap between singular values shows in the basis.
INJECTED = {torch.float64: 1e-12, torch.float32: 3e-6}
OWN = 1e-5


def replay_projected(data: Fixture, dtype: torch.dtype) -> Iterator[Line]:
    """Every case of `index`, run in the dtype that it was recorded in, or in `dtype` if that is wider.

    Cases recorded in float32 keep float32's bar in float64 too: their numbers are no better. bfloat16 cases
    cannot be compared with arithmetic in higher precision (each dossier, "Fixtures"), so they are not
    covered.
    """
    index = json.loads(str(data["index"]))
    for case in index.get("cases", []):
        name = f"{index['method']}/{case['name']}"
        if case["dtype"] == "bfloat16":
            yield Line(name)
            continue
        recorded = getattr(torch, case["dtype"])
        bar = max(INJECTED[recorded], INJECTED[dtype])
        method = index["method"].lower()
        yield from guarded(name, _run, name, method, case, data, dtype, bar, False)
        if case.get("proj", "svd") == "svd" and any(p["rank"] for p in case["params"]):
            yield from guarded(f"{name}/own", _run, f"{name}/own", method, case, data, dtype, OWN, True)


def _run(
    name: str, method: str, case: dict[str, Any], data: Fixture, dtype: torch.dtype, bar: float, own: bool
) -> Iterator[Line]:
    key = case["name"]
    weights = [nn.Parameter(tensor(data[f"{key}/p{i}/W0"], dtype)) for i, _ in enumerate(case["params"])]
    groups = []
    for i, (described, W) in enumerate(zip(case["params"], weights, strict=True)):
        if described["rank"] is None:
            groups.append({"params": [W], "role": "other"})
        else:
            basis = _projection(data, f"{key}/p{i}", dtype, own)
            groups.append({"params": [W], "role": "matrix", "rank": described["rank"], "projection": basis})
    optimizer = _optimizer(method, case, groups)
    errors: list[list[Tensor]] = [[] for _ in weights]
    norm_errors: list[list[Tensor]] = [[] for _ in weights]
    for t in range(case["steps"]):
        for group in optimizer.param_groups:
            group["lr"] = float(data[f"{key}/lr"][t])
        for i, W in enumerate(weights):
            W.grad = tensor(data[f"{key}/p{i}/G"][t], dtype)
        optimizer.step()
        for i, W in enumerate(weights):
            golden = torch.from_numpy(data[f"{key}/p{i}/W"][t]).double()
            errors[i].append((W.detach().double() - golden).abs().max())
            if f"{key}/p{i}/limiter" in data and not case.get("disable_nl") and not own:
                golden = torch.tensor(data[f"{key}/p{i}/limiter"][t], dtype=torch.float64)
                got = optimizer.state[W]["norm"].double()
                norm_errors[i].append((got - golden).abs() / golden.abs().clamp_min(1e-30))
    for i, W in enumerate(weights):
        yield Line(f"{name}/p{i}/W", torch.stack(errors[i]).max().item(), bar)
        if norm_errors[i]:
            yield Line(f"{name}/p{i}/limiter", torch.stack(norm_errors[i]).max().item(), bar)
        for ours, theirs in (("exp_avg", "m"), ("exp_avg_sq", "v")):
            golden = torch.from_numpy(data[f"{key}/p{i}/{theirs}"]).double()
            error = (optimizer.state[W][ours].double() - golden).abs().max() / golden.abs().max()
            yield Line(f"{name}/p{i}/{theirs}", error.item(), 10 * bar if own else bar)


def _optimizer(method: str, case: dict[str, Any], groups: list[dict[str, Any]]) -> ProjectedAdam:
    common: dict[str, Any] = {
        "betas": tuple(case["betas"]),
        "eps": case["eps"],
        "weight_decay": case["weight_decay"],
        "correct_bias": case["correct_bias"],
        "update_proj_gap": case["update_proj_gap"],
        "proj_type": case["proj_type"],
    }
    if method == "galore":
        return GaLore(groups, scale=case["scale"], **common)
    if method == "fira":
        return Fira(groups, alpha=case["alpha"], limiter="reference", **common)
    return APOLLO(
        groups,
        scale=case["scale"],
        scale_type=case["scale_type"],
        scale_front=case["scale_front"],
        limiter="off" if case["disable_nl"] else "reference",
        **common,
    )


def _projection(data: Fixture, place: str, dtype: torch.dtype, own: bool) -> Any:
    """The recorded basis of a step; or our own, its columns turned like the recorded ones."""
    steps = [int(s) for s in data[f"{place}/P_step"]]

    def basis(G: Tensor, rank: int, side: str, step: int) -> Tensor:
        k = steps.index(step)
        recorded = data.get(f"{place}/P_{side}", data.get(f"{place}/P"))
        P = tensor(recorded[k], dtype)
        P = P if side == "left" else P.mT
        if not own or not G.any():  # any basis is one of a zero gradient
            return P
        return align_signs(leading_left(G if side == "left" else G.mT, rank), P)

    return basis
