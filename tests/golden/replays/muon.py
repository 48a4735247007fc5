"""Muon: trajectories and single orthogonalizations; Dion is listed, not covered."""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from replays.common import Fixture, Line, frobenius_error, guarded, max_error, tensor
from torch import Tensor, nn

from lowrise.linalg import newton_schulz
from lowrise.optim import Muon


def replay_muon(data: Fixture, dtype: torch.dtype) -> Iterator[Line]:
    """The cases and operators of `index`; there is no Dion in lowrise, so its entries are not covered.

    Bars (methods/muon.md): W_f64 and momentum 1e-9 in float64 and 1e-4 of the movement in float32; W_torch
    and W_kj, made with a bfloat16 iteration, 3% of the movement over the trajectory in Frobenius norm.
    ns5_bf16 has no bar there; 5%, because two bfloat16 iterations that only round in another order differ by
    3.5% on it.
    """
    index = json.loads(str(data["index"]))
    for case in index.get("cases", []):
        yield from guarded(f"muon/{case['name']}", _muon_case, data, dtype, case)
    for operator in index.get("operators", []):
        yield from guarded(f"muon/op_{operator['name']}", _operator, data, dtype, operator["name"])
    for entry in index.get("dion", []):
        yield Line(f"muon/dion_{entry['name']}")


def _operator(data: Fixture, dtype: torch.dtype, name: str) -> Iterator[Line]:
    got = newton_schulz(tensor(data[f"op_{name}/G"], dtype), eps_rule="max").double()
    golden = torch.from_numpy(data[f"op_{name}/ns5_f64"])
    yield Line(f"muon/op_{name}/ns5_f64", max_error(got, golden, 0.0), _muon_bar(dtype))
    if f"op_{name}/ns5_bf16" in data:
        golden = torch.from_numpy(data[f"op_{name}/ns5_bf16"]).double()
        yield Line(f"muon/op_{name}/ns5_bf16", frobenius_error(got, golden, 0.0), 0.05)


def _muon_case(data: Fixture, dtype: torch.dtype, case: dict) -> Iterator[Line]:
    name = case["name"]
    places = sorted(
        {key.split("/")[1] for key in data if key.startswith(f"{name}/p") and key.count("/") == 2}
    )
    weights = {p: nn.Parameter(tensor(data[f"{name}/{p}/W0"], dtype)) for p in places}
    optimizer = Muon(
        list(weights.values()),
        lr=case["lr"],
        momentum=case["momentum"],
        nesterov=case["nesterov"],
        weight_decay=case["wd"],
        adjust_lr=case["mode"],
        ns_steps=case["ns_steps"],
    )
    trajectory: dict[str, list[Tensor]] = {p: [] for p in places}
    for t in range(case["steps"]):
        optimizer.param_groups[0]["lr"] = float(data[f"{name}/lr"][t])
        for p, W in weights.items():
            W.grad = tensor(data[f"{name}/{p}/G"][t], dtype)
        optimizer.step()
        for p, W in weights.items():
            trajectory[p].append(W.detach().double().clone())
    for p in places:
        start = torch.from_numpy(data[f"{name}/{p}/W0"]).double()
        got = torch.stack(trajectory[p])
        for key, error, bar in (
            ("W_f64", max_error, _muon_bar(dtype)),
            ("W_torch", frobenius_error, 0.03),
            ("W_kj", frobenius_error, 0.03),
        ):
            if f"{name}/{p}/{key}" in data:
                golden = torch.from_numpy(data[f"{name}/{p}/{key}"]).double()
                yield Line(f"muon/{name}/{p}/{key}", error(got, golden, start), bar)
        if f"{name}/{p}/momentum" in data:
            momentum = optimizer.state[weights[p]]["momentum"].double()
            golden = torch.from_numpy(data[f"{name}/{p}/momentum"]).double()
            yield Line(f"muon/{name}/{p}/momentum", max_error(momentum, golden, 0.0), _muon_bar(dtype))


def _muon_bar(dtype: torch.dtype) -> float:
    return 1e-9 if dtype == torch.float64 else 1e-4
