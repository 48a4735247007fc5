"""GWT: trajectories with moments and the limiter's norm, and the Haar transform: approximations as steps form
them, details of the tests' reference.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from reference.haar import haar
from replays.common import Fixture, Line, guarded, max_error, tensor
from replays.trajectory import Moved, places_of, replay_trajectory
from torch import nn

from lowrise.linalg.haar import block_sums
from lowrise.optim import GWT


def replay_gwt(data: Fixture, dtype: torch.dtype) -> Iterator[Line]:
    """The cases of `index`, as published (`limiter` "reference", details not corrected), and `transform`.

    Bars: 1e-11 in float64 (methods/gwt.md). In float32 the dossier has none; 1e-4 of the movement, because
    the first update divides details by approximations of a single sample, some of them near zero, where
    cancellation in a_even + a_odd costs two to three digits.
    """
    index = json.loads(str(data["index"]))
    for case in index.get("cases", []):
        for place in places_of(data, case["name"]):
            yield from guarded(f"gwt/{case['name']}/{place}", _case, data, dtype, case, place)
    if "transform/x" in data:
        yield from guarded("gwt/transform", _transform, data, dtype)


def _transform(data: Fixture, dtype: torch.dtype) -> Iterator[Line]:
    keys = sorted(key for key in data if key.startswith("transform/c"))
    x, level = tensor(data["transform/x"], dtype), len(keys) - 1
    A = block_sums(x, level) * 2.0 ** (-level / 2)
    _, details = haar(x, level)  # what the steps are tested against has them; the steps never form them
    for key, got in zip(keys, [A, *details], strict=True):
        golden = torch.from_numpy(data[key]).double()
        yield Line(f"gwt/{key}", max_error(got.double(), golden, 0.0), _bar(dtype))


def _case(data: Fixture, dtype: torch.dtype, case: dict, place: str) -> Iterator[Line]:
    name = case["name"]
    if (case.get("wavelet", "haar"), case.get("boundary", "zero"), case.get("gamma", 1.01)) != (
        "haar",
        "zero",
        1.01,
    ):
        yield Line(f"gwt/{name}/{place}")  # lowrise has Haar with zero padding and the authors' gamma
        return

    def build(weight: nn.Parameter) -> GWT:
        return GWT(
            [weight],
            lr=case["lr"],
            level=case["level"],
            scale=case["scale"],
            betas=tuple(case["betas"]),
            eps=case["eps"],
            correct_bias=case["correct_bias"],
            correct_details=False,
            limiter="reference",
            weight_decay=case["wd"],
        )

    norms = []
    moved: Moved | None = None
    for moved in replay_trajectory(data, name, place, dtype, build):
        norms.append(moved.optimizer.state[moved.weight]["update_norm"].double().clone())
    assert moved is not None
    golden = torch.from_numpy(data[f"{name}/{place}/W"]).double()
    yield Line(f"gwt/{name}/{place}/W", max_error(moved.trajectory, golden, moved.start), _bar(dtype))
    state = moved.optimizer.state[moved.weight]
    for key, got in (
        ("m", state["exp_avg"].double()),
        ("v", state["exp_avg_sq"].double()),
        ("update_norm", torch.stack(norms)),
    ):
        if f"{name}/{place}/{key}" in data:
            golden = torch.from_numpy(data[f"{name}/{place}/{key}"]).double()
            yield Line(f"gwt/{name}/{place}/{key}", max_error(got, golden, 0.0), _bar(dtype))


def _bar(dtype: torch.dtype) -> float:
    return 1e-11 if dtype == torch.float64 else 1e-4
