"""SinkGD with a spectral target: trajectories, its vector u and the last sigma of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from replays.common import Fixture, Line
from replays.groups import Config, replay_groups, taken
from torch import nn

from lowrise.errors import UsageError
from lowrise.optim import SinkGD

NAMES = {key: key for key in ("target", "iters", "power_iters", "power_iters_first", "weight_decay")}
ALPHA = 0.05  # of a group that does not say


def replay_sinkgd_spectral(data: Fixture, dtype: torch.dtype) -> Iterator[Line]:
    """lowrise's rate is the matrices' own, lr alpha there. Its decay is by that rate: theirs for `decay_lr`
    "lr_alpha", and with weight_decay / alpha for "lr".

    Bars (methods/factor_optimizers_2026.md): 1e-9 in float64, 1e-4 in float32.
    """
    yield from replay_groups(
        data, dtype, {"sinkgd_spectral": _build}, {"u": "u"}, bars=(1e-9, 1e-4), lr_factor=_alpha
    )  # fmt: skip


def _alpha(config: Config) -> float:
    return float(config.get("alpha", ALPHA))


def _build(weight: nn.Parameter, config: Config) -> SinkGD:
    own = {key: value for key, value in config.items() if key not in ("alpha", "decay_lr")}
    options = {"target": "muon", "power_iters": 1, **taken(own, NAMES, {})}
    options.setdefault("power_iters_first", options["power_iters"])
    decay_lr = config.get("decay_lr", "lr_alpha")
    if decay_lr not in ("lr_alpha", "lr"):
        raise UsageError(f"there is no decay_lr = {decay_lr!r}, only 'lr_alpha' and 'lr'")
    if decay_lr == "lr":
        options["weight_decay"] = options.get("weight_decay", 0.0) / _alpha(config)
    return SinkGD([weight], **options)
