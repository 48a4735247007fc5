"""LORO: trajectories and single exact steps."""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from replays.common import Fixture, Line, guarded, max_error, tensor
from torch import Tensor, nn

from lowrise.linalg import tangent_step
from lowrise.optim import LORO


def replay_loro(data: Fixture, dtype: torch.dtype) -> Iterator[Line]:
    """Trajectories NAME/config with NAME/lr through the optimizer, single steps retract/* through
    `tangent_step`.

    The fixture's letters: W = B A^T. Bars (methods/loro.md, Fixtures): float64 W 1e-12, factors 1e-11, other
    parameters 1e-13; float32 W 1e-5, and 1e-4 for factors and 1e-5 for others, which have no bar there.
    Relative to the largest value. Column pairs of the factors are compared up to their common sign.
    """
    names = sorted(key.removesuffix("/config") for key in data if key.endswith("/config"))
    if not names:
        raise KeyError("NAME/config")
    for name in names:
        config = json.loads(str(data[f"{name}/config"]))
        replay = _loro_single_steps if isinstance(config, list) else _loro_trajectory
        yield from guarded(f"loro/{name}", replay, data, dtype, name, config)
    for key in sorted(k for k in data if k.startswith("sched/") and k.endswith("_config")):
        yield Line(f"loro/{key.removesuffix('_config')}")


def _loro_trajectory(data: Fixture, dtype: torch.dtype, name: str, config: dict) -> Iterator[Line]:
    pairs = [
        tuple(nn.Parameter(tensor(data[f"{name}/{letter}0_{i}"], dtype)) for letter in "BA")
        for i in range(config["n_pairs"])
    ]
    others = [nn.Parameter(tensor(data[f"{name}/R0_{j}"], dtype)) for j in range(config["n_regular"])]
    scaler = config["lr_scaler"]
    optimizer = LORO(
        [
            {"params": [p for pair in pairs for p in pair], "role": "factors"},
            {"params": others, "role": "other"},
        ],
        betas=tuple(config["betas"]),
        eps=config["eps"],
        weight_decay=config["wd"],
        exact_every=config["K"],
        reset={"all": "all", "lrk": "factors", "reg": "other", None: "none"}[config["refresh"]],
        reset_every=config["refresh_freq"],
        # The case without a reset has its first exact step after the last update; the authors keep moments
        # there.
        transport=config["refresh"] is None,
        lr_scaler=max(scaler, 0.0),
        hidden_size=config["hidden"] if scaler < 0 else 0,
    )
    seen: dict[str, list[Tensor]] = {}
    for t in range(config["steps"]):
        for group in optimizer.param_groups:
            group["lr"] = float(data[f"{name}/lr"][t])
        for i, (A, B) in enumerate(pairs):
            if config["mode"] == "dense":
                G = tensor(data[f"{name}/G_{i}"][t], dtype)
                A.grad, B.grad = G @ B.detach(), G.T @ A.detach()
            else:
                A.grad, B.grad = (tensor(data[f"{name}/d{letter}_{i}"][t], dtype) for letter in "BA")
        for j, R in enumerate(others):
            R.grad = tensor(data[f"{name}/gR_{j}"][t], dtype)
        optimizer.step()
        for i, (A, B) in enumerate(pairs):
            seen.setdefault(f"B_{i}", []).append(A.detach().double().clone())
            seen.setdefault(f"A_{i}", []).append(B.detach().double().clone())
        for j, R in enumerate(others):
            seen.setdefault(f"R_{j}", []).append(R.detach().double().clone())
    width = "f64" if dtype == torch.float64 else "f32"
    for i in range(config["n_pairs"]):
        golden = [torch.from_numpy(data[f"{name}/{x}_{width}_{i}"]).double() for x in "BA"]
        got = [torch.stack(seen[f"{x}_{i}"]) for x in "BA"]
        yield from _loro_pair(f"loro/{name}/{i}", dtype, got, golden)
    for j in range(config["n_regular"]):
        golden_other = torch.from_numpy(data[f"{name}/R_{width}_{j}"]).double()
        bar = 1e-13 if dtype == torch.float64 else 1e-5
        yield Line(f"loro/{name}/R_{j}", max_error(torch.stack(seen[f"R_{j}"]), golden_other, 0.0), bar)


def _loro_single_steps(data: Fixture, dtype: torch.dtype, name: str, config: list[dict]) -> Iterator[Line]:
    width = "f64" if dtype == torch.float64 else "f32"
    for j, case in enumerate(config):
        A, B, D_A, D_B = (tensor(data[f"{name}/{key}_{j}"], dtype)[None] for key in ("B0", "A0", "dB", "dA"))
        moved = tangent_step(A, B, D_A, D_B, torch.tensor([case["lr"]], dtype=dtype))
        golden = [torch.from_numpy(data[f"{name}/{x}_{width}_{j}"]).double()[None] for x in "BA"]
        yield from _loro_pair(f"loro/{name}/{j}", dtype, [moved.A.double(), moved.B.double()], golden)


def _loro_pair(case: str, dtype: torch.dtype, got: list[Tensor], golden: list[Tensor]) -> Iterator[Line]:
    """W = A B^T first, then the factors with the signs of their columns (steps x 1 x r) made to agree."""
    exact = dtype == torch.float64
    yield Line(
        f"{case}/W", max_error(got[0] @ got[1].mT, golden[0] @ golden[1].mT, 0.0), 1e-12 if exact else 1e-5
    )
    signs = torch.where((got[0] * golden[0]).sum(dim=-2, keepdim=True) < 0, -1.0, 1.0).double()
    for letter, mine, theirs in zip("BA", got, golden, strict=True):
        yield Line(f"{case}/{letter}", max_error(mine * signs, theirs, 0.0), 1e-11 if exact else 1e-4)
