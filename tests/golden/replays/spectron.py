"""Spectron: trajectories with their per-step numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from replays.common import Fixture, Line, guarded, max_error, tensor
from torch import Tensor, nn

from lowrise.linalg import newton_schulz, polar_svd, product_singular_values, spectral_norm
from lowrise.optim import Spectron


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
            yield from guarded(
                f"spectron/{prefix}", _spectron_trajectory, data, dtype, prefix, options[prefix]
            )
        else:
            yield Line(f"spectron/{prefix}")


def _spectron_trajectory(
    data: Fixture, dtype: torch.dtype, prefix: str, options: dict[str, str]
) -> Iterator[Line]:
    bar = 1e-10 if dtype == torch.float64 else 1e-4
    A, B = (nn.Parameter(tensor(data[key], dtype)) for key in ("A0", "B0"))
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
            optimizer.state[factor]["u"].copy_(tensor(data[key], dtype))
    seen: dict[str, list[Tensor]] = {}
    for t in range(len(data["lr"])):
        lr = float(data["lr"][t])
        optimizer.param_groups[0]["lr"] = lr
        A.grad, B.grad = tensor(data["GA"][t], dtype), tensor(data["GB"][t], dtype)
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
        yield Line(f"spectron/{prefix}/{key}", max_error(torch.stack(seen[key]), golden, start), bar)


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
