"""SinkGD with a spectral target: trajectories, the vector u at their end and sigma of every step."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from replays.common import Fixture, Line, max_error
from replays.groups import Config, replay_groups, taken
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.optim import SinkGD

SAME = ("target", "iters", "rows_first", "power_iters", "power_iters_first", "weight_decay")
NAMES = {key: key for key in SAME}
ALPHA = 0.05  # of a group that does not say


def replay_sinkgd_spectral(data: Fixture, dtype: torch.dtype) -> Iterator[Line]:
    """lowrise's rate is the matrices' own, lr alpha there. Its decay is by that rate: theirs for `decay_lr`
    "lr_alpha", and with weight_decay / alpha for "lr".

    Bars (methods/factor_optimizers_2026.md): 1e-9 in float64, 1e-4 in float32.
    """

    def sigmas(name: str, config: Config, weights: Tensor) -> Iterator[Line]:
        """From the movement, whose norm is rate tau sqrt(m n) / sigma; in float32 rounding hides it."""
        if dtype != torch.float64 or f"{name}/sigma" not in data:
            return
        m, n = weights.shape[1:]
        tau = math.sqrt(m / n) if config.get("target", "muon") == "muon" else 1.0
        rates = torch.from_numpy(data[f"{name}/lr"]) * _alpha(config)
        decay = 1.0 - rates * _decay(config)
        moved = decay[:, None, None] * weights[:-1] - weights[1:]
        got = rates * tau * math.sqrt(m * n) / torch.linalg.vector_norm(moved, dim=(1, 2))
        golden = torch.from_numpy(data[f"{name}/sigma"]).double()
        yield Line(f"{config['rule']}/{name}/sigma", max_error(got, golden, 0.0), 1e-9)

    yield from replay_groups(
        data, dtype, {"sinkgd_spectral": _build}, {"u": "u"},
        bars=(1e-9, 1e-4), lr_factor=_alpha, also=sigmas,
    )  # fmt: skip


def _alpha(config: Config) -> float:
    return float(config.get("alpha", ALPHA))


def _decay(config: Config) -> float:
    """lowrise's weight_decay."""
    decay_lr, decay = config.get("decay_lr", "lr_alpha"), float(config.get("weight_decay", 0.0))
    if decay_lr not in ("lr_alpha", "lr"):
        raise UsageError(f"there is no decay_lr = {decay_lr!r}, only 'lr_alpha' and 'lr'")
    return decay if decay_lr == "lr_alpha" else decay / _alpha(config)


def _build(weight: nn.Parameter, config: Config) -> SinkGD:
    own = {key: value for key, value in config.items() if key not in ("alpha", "decay_lr")}
    options = {"target": "muon", "power_iters": 1, **taken(own, NAMES, {}), "weight_decay": _decay(config)}
    options.setdefault("power_iters_first", options["power_iters"])
    return SinkGD([weight], **options)
