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

from lowrise.layers import SVDLinear
from lowrise.layers.ranks import canonical, grown, shrunken_rank
from lowrise.linalg import (
    complement,
    energy_count,
    energy_rank,
    newton_schulz,
    polar_svd,
    product_singular_values,
    qf,
    retract_polar,
    retract_qr,
    spectral_norm,
    tangent,
)
from lowrise.optim import TSVD, Muon, Spectron
from lowrise.train.ranks import follow

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


def _muon_bar(dtype: torch.dtype) -> float:
    return 1e-9 if dtype == torch.float64 else 1e-4


def replay_tsvd(data: Fixture, dtype: torch.dtype) -> Iterator[Line]:
    """Layer, linear algebra, energy and every optimizer sequence of the file.

    Bars (methods/tsvd.md, section 6): 1e-10 in float64, 1e-5 in float32, absolute, or of the largest value
    where that is above 1. Counts and ranks are exact.
    """
    groups = sorted({key.split("/")[0] for key in data})
    if not any(f"{group}/G" in data for group in groups):
        raise KeyError("GROUP/G")
    for group in groups:
        own = {key.split("/")[1]: value for key, value in data.items() if key.startswith(f"{group}/")}
        if "G" in own:
            lines = _tsvd_sequence(own, dtype)
        elif "gy" in own:
            lines = _tsvd_layer(own, dtype)
        elif "spectrum" in own:
            lines = _tsvd_energy(own)
        else:
            lines = _tsvd_linalg(own, dtype)
        bar = 1e-10 if dtype == torch.float64 else 1e-5
        for name, error in lines:
            yield Line(f"tsvd/{group}/{name}", error or 0.0, None if error is None else bar)


def _tsvd_error(got: Tensor, golden: np.ndarray) -> float:
    """Largest error, relative where the largest value is above 1; a NaN stays one."""
    expected = torch.as_tensor(golden, dtype=torch.float64)
    if got.shape != expected.shape:
        return float("nan")
    return float((got.detach().double() - expected).abs().max() / expected.abs().max().clamp_min(1.0))


def _tsvd_layer(own: Fixture, dtype: torch.dtype) -> Iterator[tuple[str, float | None]]:
    layer = _svd_layer(own["U"], own["s"], own["V"], dtype)
    x = _tensor(own["x"], dtype).requires_grad_()
    y = layer(x)
    y.backward(_tensor(own["gy"], dtype))
    got = {
        "y": y,
        "W": layer.dense(),
        "gx": x.grad,
        "gU": layer.U.grad,
        "gs": layer.s.grad,
        "gV": layer.V.grad,
    }
    for name, value in got.items():
        assert value is not None
        yield name, _tsvd_error(value, own[name])


def _svd_layer(U: np.ndarray, s: np.ndarray, V: np.ndarray, dtype: torch.dtype) -> SVDLinear:
    layer = SVDLinear(V.shape[0], U.shape[0], U.shape[1], dtype=dtype)
    with torch.no_grad():
        for parameter, value in zip(layer.role_parameters(), (U, s, V), strict=True):
            parameter.copy_(_tensor(value, dtype))
    return layer


def _tsvd_linalg(own: Fixture, dtype: torch.dtype) -> Iterator[tuple[str, float | None]]:
    X, Z, A, K = (_tensor(own[key], dtype) for key in ("X", "Z", "A", "K"))
    projected = tangent(X, Z)
    got = {
        "tangent": projected,
        "qr": retract_qr(X, projected),
        "polar": retract_polar(X, projected),
        "raw_qr": retract_qr(X, Z),
        "raw_polar": retract_polar(X, Z),
        "qf_A": qf(A),
        "complement": complement(X, K),
    }
    for name in sorted(own.keys() - {"X", "Z", "A", "K", "Qbar"}):
        yield name, _tsvd_error(got[name], own[name]) if name in got else None


def _tsvd_energy(own: Fixture) -> Iterator[tuple[str, float | None]]:
    for i, length in enumerate(own["length"]):
        spectrum = torch.tensor(own["spectrum"][i, : int(length)])
        k = energy_count(spectrum, float(own["threshold"][i]))
        rank = energy_rank(k, rank=int(length), multiple=int(own["multiple"][i]), least=int(own["r_min"][i]))
        yield f"k[{i}]", float(abs(k - own["k"][i]))
        yield f"rank[{i}]", float(abs(rank - own["rank"][i]))


def _tsvd_sequence(own: Fixture, dtype: torch.dtype) -> Iterator[tuple[str, float | None]]:
    layer = _svd_layer(own["U0"], own["s0"], own["V0"], dtype)
    optimizer = TSVD(
        [{"params": list(layer.role_parameters()), "role": "svd"}],
        betas=(float(own["beta1"]), float(own["beta2"])),
        eps=float(own["eps"]),
        weight_decay=float(own["weight_decay"]),
        factor_scale=float(own["kappa_f"]),
        spectrum_scale=float(own["kappa_s"]),
        reference_rows=float(own["c_ref"]),
        project=str(own["project"]),  # type: ignore[arg-type]
        retraction=str(own["retraction"]),  # type: ignore[arg-type]
        transport=bool(own["transport"]),
    )
    worst = {"U": 0.0, "s": 0.0, "V": 0.0}
    for t, lr in enumerate(own["lr"], start=1):
        optimizer.param_groups[0]["lr"] = float(lr)
        U, s, V = layer.role_parameters()
        G = _tensor(own["G"][t - 1], dtype)  # the gradient of the dense weight
        with torch.no_grad():
            U.grad, s.grad, V.grad = G @ V * s, ((G @ V) * U).sum(0), G.T @ U * s
        optimizer.step()
        if f"event{t}" in own:
            yield from _tsvd_event(own, t, layer, optimizer)
        for name, parameter in zip("UsV", layer.role_parameters(), strict=True):
            worst[name] = float(np.maximum(worst[name], _tsvd_error(parameter, own[f"{name}{t}"])))
    yield from worst.items()
    for name, parameter in zip("UsV", layer.role_parameters(), strict=True):
        state = optimizer.state[parameter]
        yield f"m{name}", _tsvd_error(state["exp_avg"], own[f"final_m{name}"])
        yield f"v{name}", _tsvd_error(state["exp_avg_sq"], own[f"final_v{name}"])
    yield "tau", _tsvd_error(optimizer.state[layer.s]["updates"], own["final_tau"])


def _tsvd_event(
    own: Fixture, t: int, layer: SVDLinear, optimizer: TSVD
) -> Iterator[tuple[str, float | None]]:
    """One rank event through the public pieces: how the columns change, the layer, the optimizer."""
    event, old = str(own[f"event{t}"]), layer.role_parameters()
    with torch.no_grad():
        if event == "grow":
            draws = (_tensor(own[f"event{t}_Z{name}"], layer.U.dtype) for name in "UV")
            change = grown(*old, *draws)
        else:
            rank = None
            if event == "shrink":
                threshold, multiple, least, max_drop = (
                    own[f"event{t}_{name}"].item() for name in ("threshold", "multiple", "r_min", "max_drop")
                )
                rank = shrunken_rank(layer.s, threshold, multiple=multiple, least=least, max_drop=max_drop)
                yield f"event{t}_k", float(abs(energy_count(layer.s, threshold) - own[f"event{t}_k"]))
                yield f"event{t}_rank", float(abs(rank - own[f"event{t}_rank"]))
            change = canonical(*old, rank)
    layer.apply_change(change)
    follow(optimizer, old, layer.role_parameters(), change)


REPLAYS: dict[str, Callable[[Fixture, torch.dtype], Iterator[Line]]] = {
    "muon": replay_muon,
    "spectron": replay_spectron,
    "tsvd": replay_tsvd,
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
