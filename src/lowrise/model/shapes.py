"""A family of decoder shapes, one for each width, for questions that are about sizes and not about one model.

The family: width d; d / 64 layers, at least 2; an MLP of 8/3 d, rounded up to a multiple of 16; heads of 64,
32, 16 or 8, the widest that divides d and leaves at least two of them. The presets nano, mini, 60m and 130m
are members.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowrise.errors import UsageError

ASPECT = 64  # width of a layer for each layer
WIDTHS = (16, 24, 32, 48, *(2**k * quarter // 4 for k in range(6, 14) for quarter in (4, 5, 6, 7)))
"""Widths in steps of a quarter of the power of two below: 16, 24, 32, 48, 64, 80, 96, 112, 128 and so on."""
FINE_WIDTHS = (*range(16, 1024, 16), *range(1024, 16_384 + 1, 64))
"""Every multiple of 16 up to 1,024 and of 64 from there on: steps of a few percent of the width."""


@dataclass(frozen=True)
class Shape:
    """A decoder of the family."""

    width: int
    layers: int
    mlp: int
    heads: int

    @property
    def settings(self) -> dict[str, int]:
        """Its keys in a recipe."""
        return {
            "model.hidden_size": self.width,
            "model.num_layers": self.layers,
            "model.intermediate_size": self.mlp,
            "model.num_heads": self.heads,
        }


def shape_of(width: int) -> Shape:
    """The member with this width. Raises `UsageError` for a width that is no multiple of 8, or below 16."""
    if width < 16 or width % 8:
        raise UsageError(f"The width {width} is not in the family: give a multiple of 8 from 16 on.")
    head = next(size for size in (64, 32, 16, 8) if width % size == 0 and width // size >= 2)
    return Shape(width, max(2, round(width / ASPECT)), 16 * math.ceil(width / 6), width // head)
