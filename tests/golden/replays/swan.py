"""SWAN: trajectories, and its two operators alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import torch
from replays.common import Fixture, Line, guarded, max_error, tensor
from replays.trajectory import places_of, replay_trajectory
from torch import Tensor, nn

from lowrise.linalg import polar_svd, standardize, whiten, whiten_diagonal
from lowrise.optim import SWAN


def replay_swan(data: Fixture, dtype: torch.dtype) -> Iterator[Line]:
    """The cases and operators of `index`. lowrise's rate is the matrices' own, lr alpha there; its decay is
    wd / alpha.

    Bars (methods/swan.md): 1e-9 in float64; in float32 1e-5 for beta 0.5 and 1e-3 for beta 0.8, and 1e-5 for
    what does not iterate at all.
    """
    index = json.loads(str(data["index"]))
    for case in index.get("cases", []):
        for place in places_of(data, case["name"]):
            yield from guarded(f"swan/{case['name']}/{place}", _case, data, dtype, case, place)
    for operator in index.get("operators", []):
        name = operator["name"]
        yield from guarded(f"swan/op_{name}", _operators, data, dtype, f"op_{name}/")


def _operators(data: Fixture, dtype: torch.dtype, prefix: str) -> Iterator[Line]:
    G = tensor(data[prefix + "G"], dtype)
    for key in sorted(key for key in data if key.startswith(prefix) and key != prefix + "G"):
        got, beta = _operator(G, key.removeprefix(prefix))
        if got is None:
            yield Line(f"swan/{key}")
            continue
        golden = torch.from_numpy(data[key]).double()
        yield Line(f"swan/{key}", max_error(got.double(), golden, 0.0), _bar(dtype, beta))


def _case(data: Fixture, dtype: torch.dtype, case: dict, place: str) -> Iterator[Line]:
    name, alpha = case["name"], case["alpha"]

    def build(weight: nn.Parameter) -> SWAN:
        return SWAN(
            [weight],
            axis=case["axis"],
            center=case["center"],
            method=case["method"],
            steps=case["steps_ns"],
            beta=case["beta"],
            rescale=case.get("rescale", True),
            weight_decay=case["wd"] / alpha,
        )

    *_, moved = replay_trajectory(data, name, place, dtype, build, lr_factor=alpha)
    golden = torch.from_numpy(data[f"{name}/{place}/W"]).double()
    beta = case["beta"] if case["method"] == "ns" else 0.5
    yield Line(f"swan/{name}/{place}/W", max_error(moved.trajectory, golden, moved.start), _bar(dtype, beta))


def _operator(G: Tensor, key: str) -> tuple[Tensor | None, float]:
    """The operator that a key names, and the beta that decides its bar; None for an unknown name."""
    if found := re.fullmatch(r"norm_center([01])_axis([01])", key):
        return standardize(G, dim=int(found[2]), center=found[1] == "1"), 0.5
    N = standardize(G, center=False)
    if key == "exact":
        return polar_svd(N), 0.5
    if found := re.fullmatch(r"(ns|nsds)_b([\d.]+)_k(\d+)", key):
        beta, steps = float(found[2]), int(found[3])
        if found[1] == "ns":
            return whiten(N, steps=steps, beta=beta), beta
        return whiten_diagonal(N, steps=steps, beta=beta), 0.5
    return None, 0.5


def _bar(dtype: torch.dtype, beta: float) -> float:
    if dtype == torch.float64:
        return 1e-9
    return 1e-5 if beta <= 0.5 else 1e-3
