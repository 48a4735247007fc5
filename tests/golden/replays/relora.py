"""ReLoRA with its schedule and pruning, and SLTrain."""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from replays.common import Fixture, Line, guarded, max_error, tensor
from torch import Tensor

from lowrise.config import ScheduleSection
from lowrise.layers import LoRALinear, SparseLowRankLinear
from lowrise.optim import ReLoRAAdamW
from lowrise.optim.relora import small_entries
from lowrise.train.schedule import multiplier, restarts_of


def replay_relora(data: Fixture, dtype: torch.dtype) -> Iterator[Line]:
    """The trajectories, schedules, prunings and SLTrain layers of `index`.

    Bars (methods/lora_relora.md, Fixtures): 1e-9 in float64, 1e-4 in float32, of the largest movement for
    factors and W, else of the largest value.
    """
    index = json.loads(str(data["index"]))
    for case in index.get("trajectories", []):
        yield from guarded(f"relora/{case['name']}", _relora_trajectory, data, dtype, case)
    for case in index.get("schedules", []):
        yield from guarded(f"relora/{case['name']}", _schedule, data, case)
    for case in index.get("prunings", []):
        yield from guarded(f"relora/{case['name']}", _pruning, data, dtype, case)
    for case in index.get("sltrain", []):
        yield from guarded(f"relora/{case['name']}", _sltrain_case, data, dtype, case)


def _schedule(data: Fixture, case: dict) -> Iterator[Line]:
    name = f"relora/{case['name']}/multiplier"
    if case["adjust"]:
        yield Line(name)
        return
    section = ScheduleSection(
        warmup=float(case["warmup"]),
        min_lr_ratio=case["min_ratio"],
        cycle=case["every"],
        restart_warmup=case["restart_warmup"],
    )
    restarts = restarts_of(section, (), case["total"])
    ours = [multiplier(t, case["total"], section, restarts) for t in range(case["total"])]
    golden = torch.from_numpy(data[f"{case['name']}/multiplier"])
    yield Line(name, max_error(torch.tensor(ours, dtype=torch.float64), golden, 0.0), 1e-9)


def _pruning(data: Fixture, dtype: torch.dtype, case: dict) -> Iterator[Line]:
    x = tensor(data[f"{case['name']}/x"], dtype)
    pruned = x.masked_fill(small_entries(x, case["ratio"]), 0.0).double()
    golden = torch.from_numpy(data[f"{case['name']}/pruned"])
    yield Line(f"relora/{case['name']}/pruned", max_error(pruned, golden, 0.0), _relora_bar(dtype))


def _relora_trajectory(data: Fixture, dtype: torch.dtype, case: dict) -> Iterator[Line]:
    """lowrise's update `number` is the file's update number + 1, counted from 1: both have the multiplier 0
    where the product is merged. The first one of the file, of rate 0, is none of ours: nothing falls due on
    it.
    """
    name, bar = case["name"], _relora_bar(dtype)
    place = f"{name}/p0"
    layer = LoRALinear(
        case["in"], case["out"], case["r"], alpha=case["lora_alpha"], merge_every=case["every"], dtype=dtype
    )
    layer.W0.data.copy_(tensor(data[f"{place}/W0"], dtype))
    layer.B.data.copy_(tensor(data[f"{place}/A0"], dtype).T)
    optimizer = ReLoRAAdamW(
        [{"params": list(layer.role_parameters()), "role": layer.role}],
        betas=tuple(case["betas"]),
        weight_decay=case["wd"],
        reset_every=case["every"],
        reset=case["reset"],
        prune=case["prune"],
    )
    target = tensor(data[f"{place}/target"], dtype)
    drawn = iter(tensor(data[f"{place}/reset_A"], dtype))
    seen: dict[str, list[Tensor]] = {}
    for number in range(case["steps"]):
        x = tensor(data[f"{place}/x"][number], dtype)
        loss = case["loss_scale"] * (layer(x) - x @ target.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = float(data[f"{name}/lr"][number])
        optimizer.step()
        if number:
            before = layer.B.detach().clone()
            layer.after_update(number, case["total"])
            optimizer.after_update(number, case["total"])
            if not torch.equal(before, layer.B):
                seen.setdefault("reset_step", []).append(torch.tensor(number + 1))
                layer.B.data.copy_(next(drawn).T)
                for key, factor, moment in (
                    ("reset_mA", layer.B, "exp_avg"),
                    ("reset_vA", layer.B, "exp_avg_sq"),
                    ("reset_mB", layer.A, "exp_avg"),
                    ("reset_vB", layer.A, "exp_avg_sq"),
                ):
                    value = optimizer.state[factor][moment].clone()
                    seen.setdefault(key, []).append(value.T if factor is layer.B else value)
        for key, value in (("A", layer.B.T), ("B", layer.A), ("W", layer.W0), ("loss", loss)):
            seen.setdefault(key, []).append(value.detach().clone())
    starts = {"A": data[f"{place}/A0"], "W": data[f"{place}/W0"]}
    for key, values in seen.items():
        golden = torch.from_numpy(data[f"{name}/loss" if key == "loss" else f"{place}/{key}"]).double()
        start = torch.from_numpy(starts[key]).double() if key in starts else 0.0
        got = torch.stack(values).double()
        if not golden.any():  # moments that are zeroed: the bar is absolute
            yield Line(f"relora/{name}/{key}", got.abs().max().item(), bar)
        else:
            yield Line(f"relora/{name}/{key}", max_error(got, golden, start), bar)


def _sltrain_case(data: Fixture, dtype: torch.dtype, case: dict) -> Iterator[Line]:
    name = case["name"]
    layer = SparseLowRankLinear(
        case["in"], case["out"], case["r"], delta=case["delta"], alpha=case["lora_alpha"], dtype=dtype
    )
    layer.A.data.copy_(tensor(data[f"{name}/B"], dtype))
    layer.B.data.copy_(tensor(data[f"{name}/A"], dtype).T)
    layer.values.data.copy_(tensor(data[f"{name}/values"], dtype))
    layer.index.copy_(torch.from_numpy(data[f"{name}/index"]))
    x = tensor(data[f"{name}/x"], dtype).requires_grad_()
    y = layer(x)
    y.backward(tensor(data[f"{name}/gy"], dtype))
    assert x.grad is not None
    assert layer.A.grad is not None
    assert layer.B.grad is not None
    assert layer.values.grad is not None
    numbers = {"y": y, "gx": x.grad, "gA": layer.B.grad.T, "gB": layer.A.grad, "gvalues": layer.values.grad}
    for key, got in numbers.items():
        golden = torch.from_numpy(data[f"{name}/{key}"])
        error = max_error(got.detach().double(), golden, 0.0)
        yield Line(f"relora/{name}/{key}", error, _relora_bar(dtype))


def _relora_bar(dtype: torch.dtype) -> float:
    return 1e-9 if dtype == torch.float64 else 1e-4
