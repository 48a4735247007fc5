"""The table of methods: a named pair of layer and optimizer with the defaults that `lowrise train` starts
from.

The table names defaults, not limits: any layer may be combined with any optimizer that can move it
(`--layer.name`, `--optimizer.name`). Defaults are for the tiny presets on a CPU; recipes carry the
published sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row."""

    name: str
    layer: str
    """Name in `layers.LAYERS`, or "dense"."""
    optimizer: str
    """Name in `optim.OPTIMIZERS`."""
    summary: str
    source: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Dotted configuration keys; each value's origin is a comment in the table."""


_ROWS = (
    Method(
        name="adamw",
        layer="dense",
        optimizer="adamw",
        summary="dense weights, AdamW: the baseline that every paper quotes",
        source="Loshchilov & Hutter 2019, arXiv 1711.05101",
        defaults={"optimizer.lr": 3e-3},
    ),
    Method(
        name="muon",
        layer="dense",
        optimizer="muon",
        summary="dense weights, orthogonalized momentum: the strongest full-rank baseline",
        source="Jordan et al. 2024 (KellerJordan/Muon); Moonlight, arXiv 2502.16982",
        defaults={"optimizer.lr": 3e-3, "other.lr": 3e-3},
    ),
    Method(
        name="lowrank",
        layer="lowrank",
        optimizer="adamw",
        summary="factorized weights W = A B^T, AdamW tuned like the others",
        source="Kamalakara et al. 2022, arXiv 2209.13569; the tuned form of the published straw man",
        defaults={"optimizer.lr": 3e-3, "other.lr": 3e-3},
    ),
    Method(
        name="spectron",
        layer="lowrank",
        optimizer="spectron",
        summary="factorized weights, orthogonalized momenta, update norm bounded by the learning rate",
        source="Janson, Oyallon & Belilovsky 2026, arXiv 2602.12429",
        defaults={"optimizer.lr": 0.1, "other.lr": 3e-3},
    ),
    Method(
        name="tsvd",
        layer="svd",
        optimizer="tsvd",
        summary="W = U diag(s) V^T, U and V orthonormal throughout, rank chosen by energy during training",
        source="after Kamali et al. 2026, arXiv 2605.28573; the algorithm is ours (docs/methods/tsvd.md)",
        # ours: optimizer.lr and the threshold are those of the toy comparison in the docs page
        defaults={"optimizer.lr": 3e-3, "other.lr": 3e-3, "layer.energy": 0.97},
    ),
)

METHODS: dict[str, Method] = {row.name: row for row in _ROWS}
