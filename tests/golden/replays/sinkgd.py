"""SinkGD: trajectories, and square-root Sinkhorn alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import torch
from replays.common import Fixture, Line, guarded, max_error, tensor
from replays.trajectory import places_of, replay_trajectory
from torch import nn

from lowrise.linalg import sinkhorn
from lowrise.optim import SinkGD


def replay_sinkgd(data: Fixture, dtype: torch.dtype) -> Iterator[Line]:
    """The cases and operators of `index`. lowrise's rate is the matrices' own, lr alpha there; its decay is
    wd / alpha.

    Bars (methods/sinkgd.md): 1e-10 in float64, 1e-5 in float32.
    """
    index = json.loads(str(data["index"]))
    bar = 1e-10 if dtype == torch.float64 else 1e-5
    for case in index.get("cases", []):
        for place in places_of(data, case["name"]):
            yield from guarded(f"sinkgd/{case['name']}/{place}", _case, data, dtype, case, place, bar)
    for operator in index.get("operators", []):
        name = operator["name"]
        yield from guarded(f"sinkgd/op_{name}", _operator, data, dtype, f"op_{name}/", bar)


def _case(data: Fixture, dtype: torch.dtype, case: dict, place: str, bar: float) -> Iterator[Line]:
    name = case["name"]

    def build(weight: nn.Parameter) -> SinkGD:
        return SinkGD(
            [weight],
            iters=case["iters"],
            rows_first=case["rows_first"],
            weight_decay=case["wd"] / case["alpha"],
        )

    *_, moved = replay_trajectory(data, name, place, dtype, build, lr_factor=case["alpha"])
    golden = torch.from_numpy(data[f"{name}/{place}/W"]).double()
    yield Line(f"sinkgd/{name}/{place}/W", max_error(moved.trajectory, golden, moved.start), bar)


def _operator(data: Fixture, dtype: torch.dtype, prefix: str, bar: float) -> Iterator[Line]:
    for key in sorted(key for key in data if key.startswith(prefix + "sinkhorn")):
        found = re.fullmatch(r"sinkhorn_L(\d+)", key.removeprefix(prefix))
        if not found:
            yield Line(f"sinkgd/{key}")
            continue
        got = sinkhorn(tensor(data[prefix + "G"], dtype), iters=int(found[1])).double()
        golden = torch.from_numpy(data[key]).double()
        yield Line(f"sinkgd/{key}", max_error(got, golden, 0.0), bar)
