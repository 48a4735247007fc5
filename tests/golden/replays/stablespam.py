"""Stable-SPAM: trajectories."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from replays.common import Fixture, Line
from replays.groups import Config, replay_groups, taken
from torch import nn

from lowrise.optim import StableSPAM

SAME = ("betas", "eps", "gamma1", "gamma2", "theta", "eta_min", "weight_decay", "total_steps")
NAMES = {key: key for key in (*SAME, "reset_every", "reset_counter", "reset_moments")}
STATES = {"m": "exp_avg", "v": "exp_avg_sq", "m_max": "m_max", "m_norm": "m_norm", "v_norm": "v_norm"}


def replay_stablespam(data: Fixture, dtype: torch.dtype) -> Iterator[Line]:
    """Bars (methods/factor_optimizers_2026.md): 1e-9 in float64, 1e-4 in float32."""
    yield from replay_groups(data, dtype, {"stablespam": _build}, STATES, bars=(1e-9, 1e-4))


def _build(weight: nn.Parameter, config: Config) -> StableSPAM:
    given = {key: value for key, value in config.items() if value is not None}  # total_steps: none
    if "beta1" in given or "beta2" in given:
        given["betas"] = (given.pop("beta1", 0.9), given.pop("beta2", 0.999))
    return StableSPAM([weight], **taken(given, NAMES, {}))
