"""Replay a fixture file through the public optimizers and compare every number in it.

    python tests/golden/replay.py METHOD FILE.npz [--dtype float32|float64]

Prints `case  error  bar  ok|FAIL` a line; entries that no part of lowrise covers are printed as `not
covered`. Exit code 0 if all is ok, 1 if a case fails, 2 with a sentence for a request that cannot be right.
Cases, shapes and hyperparameters are read from the file. A new method is one function here and one row in
`REPLAYS`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from lowrise.config import ScheduleSection
from lowrise.layers import CoLALinear, LoRALinear, SparseLowRankLinear, factorize
from lowrise.linalg import newton_schulz, polar_svd, product_singular_values, spectral_norm, tangent_step
from lowrise.model.llama import MLP
from lowrise.optim import LORO, Muon, ReLoRAAdamW, Spectron
from lowrise.optim.relora import small_entries
from lowrise.train.schedule import multiplier, restarts_of

Fixture = dict[str, np.ndarray]


@dataclass(frozen=True)
class Line:
    """One compared number; `bar` None marks an entry that is not covered."""

    case: str
    error: float = 0.0
    bar: float | None = None

    @property
    def failed(self) -> bool:
        """A NaN error fails too."""
        return self.bar is not None and not self.error <= self.bar

    def __str__(self) -> str:
        if self.bar is None:
            return f"{self.case}  -  -  not covered"
        return f"{self.case}  {self.error:.3e}  {self.bar:.0e}  {'FAIL' if self.failed else 'ok'}"


def replay_spectron(data: Fixture, dtype: torch.dtype) -> Iterator[Line]:
    """Every trajectory PREFIX_A, PREFIX_B of the file, with its per-step numbers.

    Bars (methods/spectron.md, section 7): 1e-10 in float64, 1e-4 in float32, of the largest movement of a
    factor; for the per-step numbers, of their own largest value.
    """
    options: dict[str, dict[str, str]] = {
        "exact": {"ortho": "svd", "norms": "exact"},
        "pub": {"ns_dtype": "auto"},
    }
    prefixes = sorted(key.removesuffix("_rho") for key in data if key.endswith("_rho"))
    if not prefixes:
        raise KeyError("PREFIX_rho")
    for prefix in prefixes:
        if prefix in options:
            yield from _spectron_trajectory(data, dtype, prefix, options[prefix])
        else:
            yield Line(f"spectron/{prefix}")


def _spectron_trajectory(
    data: Fixture, dtype: torch.dtype, prefix: str, options: dict[str, str]
) -> Iterator[Line]:
    bar = 1e-10 if dtype == torch.float64 else 1e-4
    A, B = (nn.Parameter(_tensor(data[key], dtype)) for key in ("A0", "B0"))
    optimizer = Spectron(
        [{"params": [A, B], "role": "factors"}],
        lr=float(data["lr"][0]),
        momentum=float(data["beta"]),
        weight_decay=float(data["weight_decay"]),
        ns_steps=int(data["ns_steps"]),
        ns_coefficients=tuple(float(c) for c in data["ns_coeffs"]),
        ns_eps=float(data["ns_eps"]),
        power_iters=int(data["power_iters"]),
        **options,  # type: ignore[arg-type]
    )
    for factor, key in ((A, "uA0"), (B, "uB0")):
        if "u" in optimizer.state[factor]:
            optimizer.state[factor]["u"].copy_(_tensor(data[key], dtype))
    seen: dict[str, list[Tensor]] = {}
    for t in range(len(data["lr"])):
        lr = float(data["lr"][t])
        optimizer.param_groups[0]["lr"] = lr
        A.grad, B.grad = _tensor(data["GA"][t], dtype), _tensor(data["GB"][t], dtype)
        before = A.detach().clone(), B.detach().clone()
        optimizer.step()
        for key, value in _spectron_numbers(optimizer, before, (A, B), lr).items():
            seen.setdefault(key, []).append(value)
    for key in sorted(k.removeprefix(f"{prefix}_") for k in data if k.startswith(f"{prefix}_")):
        golden = torch.from_numpy(np.asarray(data[f"{prefix}_{key}"], dtype=np.float64))
        if key not in seen:
            yield Line(f"spectron/{prefix}/{key}")
            continue
        start = torch.from_numpy(data[f"{key}0"]).double() if key in ("A", "B") else 0.0
        yield Line(f"spectron/{prefix}/{key}", _max_error(torch.stack(seen[key]), golden, start), bar)


def _spectron_numbers(
    optimizer: Spectron, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], lr: float
) -> dict[str, Tensor]:
    """What the fixture holds per step, read off the optimizer.

    rho and ||O|| come from the movement of the factors: rho is <dX, O> / <O, O> with O the Ortho of the
    stored momentum. sigma is |X^T u| with the u that the step left behind (power iteration), or the exact
    norm of the factor that entered the step.
    """
    group = optimizer.param_groups[0]
    kept = 1.0 - lr * group["weight_decay"]
    moved = [kept * old - new.detach() for old, new in zip(before, after, strict=True)]
    numbers: dict[str, Tensor] = {}
    for name, X, old, dX in zip("AB", after, before, moved, strict=True):
        state = optimizer.state[X]
        if group["ortho"] == "svd":
            direction = polar_svd(state["momentum"])
        else:
            direction = newton_schulz(
                state["momentum"],
                steps=group["ns_steps"],
                coefficients=group["ns_coefficients"],
                eps=group["ns_eps"],
            )
        rho = (dX * direction).sum() / (direction * direction).sum()
        numbers[name] = X.detach().clone()
        numbers["rho"] = rho if name == "A" else numbers["rho"]
        numbers[f"O{name}_norm"] = spectral_norm(dX / rho)
        if "u" in state:
            numbers[f"u{name}"] = state["u"].clone()
            numbers[f"sigma{name}"] = torch.linalg.vector_norm(old.mT @ state["u"])
        else:
            numbers[f"sigma{name}"] = spectral_norm(old)
    (A, B), (dA, dB) = before, moved
    # (kA - dA)(kB - dB)^T - kA (kB)^T as a product of two thin matrices
    L, R = torch.cat([-dA, kept * A - dA], dim=1), torch.cat([kept * B, -dB], dim=1)
    numbers["dW_norm"] = product_singular_values(L, R)[0]
    return {key: value.double() for key, value in numbers.items()}


def replay_muon(data: Fixture, dtype: torch.dtype) -> Iterator[Line]:
    """The cases and operators of `index`; there is no Dion in lowrise, so its entries are not covered.

    Bars (methods/muon.md): W_f64 and momentum 1e-9 in float64 and 1e-4 of the movement in float32; W_torch
    and W_kj, made with a bfloat16 iteration, 3% of the movement over the trajectory in Frobenius norm.
    ns5_bf16 has no bar there; 5%, because two bfloat16 iterations that only round in another order differ by
    3.5% on it.
    """
    index = json.loads(str(data["index"]))
    for case in index.get("cases", []):
        yield from _muon_case(data, dtype, case)
    for operator in index.get("operators", []):
        name = operator["name"]
        got = newton_schulz(_tensor(data[f"op_{name}/G"], dtype), eps_rule="max").double()
        golden = torch.from_numpy(data[f"op_{name}/ns5_f64"])
        yield Line(f"muon/op_{name}/ns5_f64", _max_error(got, golden, 0.0), _muon_bar(dtype))
        if f"op_{name}/ns5_bf16" in data:
            golden = torch.from_numpy(data[f"op_{name}/ns5_bf16"]).double()
            yield Line(f"muon/op_{name}/ns5_bf16", _frobenius_error(got, golden, 0.0), 0.05)
    for entry in index.get("dion", []):
        yield Line(f"muon/dion_{entry['name']}")


def _muon_case(data: Fixture, dtype: torch.dtype, case: dict) -> Iterator[Line]:
    name = case["name"]
    places = sorted(
        {key.split("/")[1] for key in data if key.startswith(f"{name}/p") and key.count("/") == 2}
    )
    weights = {p: nn.Parameter(_tensor(data[f"{name}/{p}/W0"], dtype)) for p in places}
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
            W.grad = _tensor(data[f"{name}/{p}/G"][t], dtype)
        optimizer.step()
        for p, W in weights.items():
            trajectory[p].append(W.detach().double().clone())
    for p in places:
        start = torch.from_numpy(data[f"{name}/{p}/W0"]).double()
        got = torch.stack(trajectory[p])
        for key, error, bar in (
            ("W_f64", _max_error, _muon_bar(dtype)),
            ("W_torch", _frobenius_error, 0.03),
            ("W_kj", _frobenius_error, 0.03),
        ):
            if f"{name}/{p}/{key}" in data:
                golden = torch.from_numpy(data[f"{name}/{p}/{key}"]).double()
                yield Line(f"muon/{name}/{p}/{key}", error(got, golden, start), bar)
        if f"{name}/{p}/momentum" in data:
            momentum = optimizer.state[weights[p]]["momentum"].double()
            golden = torch.from_numpy(data[f"{name}/{p}/momentum"]).double()
            yield Line(f"muon/{name}/{p}/momentum", _max_error(momentum, golden, 0.0), _muon_bar(dtype))


def replay_cola(data: Fixture, dtype: torch.dtype) -> Iterator[Line]:
    """The `layers` and `mlps` of `index`: output and every gradient. The file's a is our B and its b our A.T.

    Bars (methods/cola.md, section 6), relative to the largest value: 1e-12 in float64, 1e-5 in float32.
    """
    index = json.loads(str(data["index"]))
    activation = index["activation"]
    for case in index["layers"]:
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
            layer.bias.data.copy_(_tensor(data[f"{name}/bias"], dtype))
        seen = _backward(layer, data, name, dtype) | _cola_gradients(layer, "")
        yield from _cola_lines(data, name, seen, dtype)
    for case in index["mlps"]:
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
    layer.B.data.copy_(_tensor(data[f"{prefix}a"], dtype))
    layer.A.data.copy_(_tensor(data[f"{prefix}b"], dtype).T)


def _backward(module: nn.Module, data: Fixture, name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    x = _tensor(data[f"{name}/x"], dtype).requires_grad_()
    y = module(x)
    y.backward(_tensor(data[f"{name}/gy"], dtype))
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
        yield Line(f"cola/{name}/{key}", _max_error(seen[key].double(), golden, 0.0), bar)


def _muon_bar(dtype: torch.dtype) -> float:
    return 1e-9 if dtype == torch.float64 else 1e-4


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
        if isinstance(config, list):
            yield from _loro_single_steps(data, dtype, name, config)
        else:
            yield from _loro_trajectory(data, dtype, name, config)
    for key in sorted(k for k in data if k.startswith("sched/") and k.endswith("_config")):
        yield Line(f"loro/{key.removesuffix('_config')}")


def _loro_trajectory(data: Fixture, dtype: torch.dtype, name: str, config: dict) -> Iterator[Line]:
    pairs = [
        tuple(nn.Parameter(_tensor(data[f"{name}/{letter}0_{i}"], dtype)) for letter in "BA")
        for i in range(config["n_pairs"])
    ]
    others = [nn.Parameter(_tensor(data[f"{name}/R0_{j}"], dtype)) for j in range(config["n_regular"])]
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
                G = _tensor(data[f"{name}/G_{i}"][t], dtype)
                A.grad, B.grad = G @ B.detach(), G.T @ A.detach()
            else:
                A.grad, B.grad = (_tensor(data[f"{name}/d{letter}_{i}"][t], dtype) for letter in "BA")
        for j, R in enumerate(others):
            R.grad = _tensor(data[f"{name}/gR_{j}"][t], dtype)
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
        yield Line(f"loro/{name}/R_{j}", _max_error(torch.stack(seen[f"R_{j}"]), golden_other, 0.0), bar)


def _loro_single_steps(data: Fixture, dtype: torch.dtype, name: str, config: list[dict]) -> Iterator[Line]:
    width = "f64" if dtype == torch.float64 else "f32"
    for j, case in enumerate(config):
        A, B, D_A, D_B = (_tensor(data[f"{name}/{key}_{j}"], dtype)[None] for key in ("B0", "A0", "dB", "dA"))
        moved = tangent_step(A, B, D_A, D_B, torch.tensor([case["lr"]], dtype=dtype))
        golden = [torch.from_numpy(data[f"{name}/{x}_{width}_{j}"]).double()[None] for x in "BA"]
        yield from _loro_pair(f"loro/{name}/{j}", dtype, [moved.A.double(), moved.B.double()], golden)


def _loro_pair(case: str, dtype: torch.dtype, got: list[Tensor], golden: list[Tensor]) -> Iterator[Line]:
    """W = A B^T first, then the factors with the signs of their columns (steps x 1 x r) made to agree."""
    exact = dtype == torch.float64
    yield Line(
        f"{case}/W", _max_error(got[0] @ got[1].mT, golden[0] @ golden[1].mT, 0.0), 1e-12 if exact else 1e-5
    )
    signs = torch.where((got[0] * golden[0]).sum(dim=-2, keepdim=True) < 0, -1.0, 1.0).double()
    for letter, mine, theirs in zip("BA", got, golden, strict=True):
        yield Line(f"{case}/{letter}", _max_error(mine * signs, theirs, 0.0), 1e-11 if exact else 1e-4)


def replay_relora(data: Fixture, dtype: torch.dtype) -> Iterator[Line]:
    """The trajectories, schedules, prunings and SLTrain layers of `index`.

    Bars (methods/lora_relora.md, Fixtures): 1e-9 in float64, 1e-4 in float32, of the largest movement for
    factors and W, else of the largest value.
    """
    index = json.loads(str(data["index"]))
    for case in index.get("trajectories", []):
        yield from _relora_trajectory(data, dtype, case)
    for case in index.get("schedules", []):
        name = f"relora/{case['name']}/multiplier"
        if case["adjust"]:
            yield Line(name)
            continue
        section = ScheduleSection(
            warmup=float(case["warmup"]),
            final=case["min_ratio"],
            cycle=case["every"],
            restart_warmup=case["restart_warmup"],
        )
        restarts = restarts_of(section, (), case["total"])
        ours = [multiplier(t, case["total"], section, restarts) for t in range(case["total"])]
        golden = torch.from_numpy(data[f"{case['name']}/multiplier"])
        yield Line(name, _max_error(torch.tensor(ours, dtype=torch.float64), golden, 0.0), 1e-9)
    for case in index.get("prunings", []):
        x = _tensor(data[f"{case['name']}/x"], dtype)
        pruned = x.masked_fill(small_entries(x, case["ratio"]), 0.0).double()
        golden = torch.from_numpy(data[f"{case['name']}/pruned"])
        yield Line(f"relora/{case['name']}/pruned", _max_error(pruned, golden, 0.0), _relora_bar(dtype))
    for case in index.get("sltrain", []):
        yield from _sltrain_case(data, dtype, case)


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
    layer.W0.data.copy_(_tensor(data[f"{place}/W0"], dtype))
    layer.B.data.copy_(_tensor(data[f"{place}/A0"], dtype).T)
    optimizer = ReLoRAAdamW(
        [{"params": list(layer.role_parameters()), "role": layer.role}],
        betas=tuple(case["betas"]),
        weight_decay=case["wd"],
        reset_every=case["every"],
        reset=case["reset"],
        prune=case["prune"],
    )
    target = _tensor(data[f"{place}/target"], dtype)
    drawn = iter(_tensor(data[f"{place}/reset_A"], dtype))
    seen: dict[str, list[Tensor]] = {}
    for number in range(case["steps"]):
        x = _tensor(data[f"{place}/x"][number], dtype)
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
            yield Line(f"relora/{name}/{key}", _max_error(got, golden, start), bar)


def _sltrain_case(data: Fixture, dtype: torch.dtype, case: dict) -> Iterator[Line]:
    name = case["name"]
    layer = SparseLowRankLinear(
        case["in"], case["out"], case["r"], delta=case["delta"], alpha=case["lora_alpha"], dtype=dtype
    )
    layer.A.data.copy_(_tensor(data[f"{name}/B"], dtype))
    layer.B.data.copy_(_tensor(data[f"{name}/A"], dtype).T)
    layer.values.data.copy_(_tensor(data[f"{name}/values"], dtype))
    layer.index.copy_(torch.from_numpy(data[f"{name}/index"]))
    x = _tensor(data[f"{name}/x"], dtype).requires_grad_()
    y = layer(x)
    y.backward(_tensor(data[f"{name}/gy"], dtype))
    assert x.grad is not None
    assert layer.A.grad is not None
    assert layer.B.grad is not None
    assert layer.values.grad is not None
    numbers = {"y": y, "gx": x.grad, "gA": layer.B.grad.T, "gB": layer.A.grad, "gvalues": layer.values.grad}
    for key, got in numbers.items():
        golden = torch.from_numpy(data[f"{name}/{key}"])
        error = _max_error(got.detach().double(), golden, 0.0)
        yield Line(f"relora/{name}/{key}", error, _relora_bar(dtype))


def _relora_bar(dtype: torch.dtype) -> float:
    return 1e-9 if dtype == torch.float64 else 1e-4


REPLAYS: dict[str, Callable[[Fixture, torch.dtype], Iterator[Line]]] = {
    "cola": replay_cola,
    "loro": replay_loro,
    "muon": replay_muon,
    "relora": replay_relora,
    "spectron": replay_spectron,
}


def _tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.tensor(array, dtype=dtype)


def _max_error(got: Tensor, golden: Tensor, start: Tensor | float) -> float:
    """Largest error over the largest movement from `start` (over the largest value, with start 0)."""
    return ((got - golden).abs().max() / (golden - start).abs().max()).item()


def _frobenius_error(got: Tensor, golden: Tensor, start: Tensor | float) -> float:
    """Frobenius norm of the error over that of the movement from `start`, over all steps together."""
    return (torch.linalg.vector_norm(got - golden) / torch.linalg.vector_norm(golden - start)).item()


def _usage(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 2


def main(argv: list[str] | None = None) -> int:
    """Parse, replay, print; returns the exit code."""
    parser = argparse.ArgumentParser(description="Replay a golden fixture through the public optimizers.")
    parser.add_argument("method")
    parser.add_argument("file", type=Path)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    arguments = parser.parse_args(argv)
    if arguments.method not in REPLAYS:
        return _usage(
            f"there is no replay for the method {arguments.method!r}; there is one for {', '.join(REPLAYS)}."
        )
    try:
        with np.load(arguments.file, allow_pickle=False) as archive:
            data = {key: archive[key] for key in archive.files}
        lines = list(REPLAYS[arguments.method](data, getattr(torch, arguments.dtype)))
    except (OSError, ValueError, EOFError) as error:
        return _usage(f"{arguments.file} cannot be read as a fixture file (.npz): {error}")
    except KeyError as error:
        return _usage(f"{arguments.file} is no fixture of {arguments.method}: it lacks the key {error}.")
    for line in lines:
        print(line)
    return 1 if any(line.failed for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
