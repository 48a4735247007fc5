"""TSVD: the layer, retractions, energies, ranks and trajectories."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from replays.common import Fixture, Line, guarded, tensor
from torch import Tensor

from lowrise.layers import SVDLinear
from lowrise.layers.ranks import canonical, grown, shrunken_rank
from lowrise.linalg import complement, energy_count, energy_rank, qf, retract_polar, retract_qr, tangent
from lowrise.optim import TSVD
from lowrise.train.ranks import follow


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
        yield from guarded(f"tsvd/{group}", _tsvd_group, group, own, dtype)


def _tsvd_group(group: str, own: Fixture, dtype: torch.dtype) -> Iterator[Line]:
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
    x = tensor(own["x"], dtype).requires_grad_()
    y = layer(x)
    y.backward(tensor(own["gy"], dtype))
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
            parameter.copy_(tensor(value, dtype))
    return layer


def _tsvd_linalg(own: Fixture, dtype: torch.dtype) -> Iterator[tuple[str, float | None]]:
    X, Z, A, K = (tensor(own[key], dtype) for key in ("X", "Z", "A", "K"))
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
        G = tensor(own["G"][t - 1], dtype)  # the gradient of the dense weight
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
            draws = (tensor(own[f"event{t}_Z{name}"], layer.U.dtype) for name in "UV")
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
