"""NorMuon and Dion2: trajectories."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from replays.common import Fixture, Line
from replays.groups import Config, replay_groups, taken
from torch import nn

from lowrise.optim import Dion2, NorMuon

SPELLINGS = {
    "accumulate": {"ema": "average", "average": "average", "sum": "sum"},
    "msign": {"svd": "svd", "quintic5": "ns5"},
    "scale": {"keller": "original", "spectral": "spectral", "rms": "match_rms_adamw", "none": "none"},
}
COMMON = {"msign": "ortho", "scale": "adjust_lr", "weight_decay": "weight_decay"}
NORMUON = {
    **COMMON,
    **{key: key for key in ("momentum", "beta2", "nesterov", "accumulate", "norm_eps")},
}
DION2 = {**COMMON, "fraction": "fraction", "ef_decay": "ef_decay"}


def replay_normuon(data: Fixture, dtype: torch.dtype) -> Iterator[Line]:
    """The groups of the rules normuon and dion2; those of other rules are not covered.

    Bars (methods/factor_optimizers_2026.md): 1e-9 in float64, 1e-4 in float32.
    """
    states = {"momentum": "momentum", "row_second_moment": "row_second_moment"}
    yield from replay_groups(data, dtype, {"normuon": _normuon, "dion2": _dion2}, states, bars=(1e-9, 1e-4))


def _normuon(weight: nn.Parameter, config: Config) -> NorMuon:
    return NorMuon([weight], **{"adjust_lr": "original", **taken(config, NORMUON, SPELLINGS)})


def _dion2(weight: nn.Parameter, config: Config) -> Dion2:
    return Dion2([weight], **taken(config, DION2, SPELLINGS))
