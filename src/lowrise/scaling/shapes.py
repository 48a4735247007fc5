"""A family of decoder shapes, one for each width, and which of them are run at a budget of FLOPs.

The family: width d; d / 64 layers, at least 2; an MLP of 8/3 d, rounded up to a multiple of 16; heads of 64,
32, 16 or 8, the widest that divides d and leaves at least two of them. The presets nano, mini, 60m and 130m
are members. The rule takes widths of 16, 24, 32, 48, 64, 80, 96, 112, 128 and so on, in steps of a quarter
of the power of two below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lowrise.errors import UsageError

ASPECT = 64  # width of a layer for each layer
WIDTHS = (16, 24, 32, 48, *(2**k * quarter // 4 for k in range(6, 14) for quarter in (4, 5, 6, 7)))


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


@dataclass(frozen=True)
class Sized:
    """A shape as one method has it: parameters without embedding and head, tokens and FLOPs of an update."""

    shape: Shape
    params: int
    tokens_per_step: int
    flops_per_step: float

    def steps(self, budget: float) -> int:
        """Updates whose FLOPs are nearest to the budget."""
        return max(1, round(budget / self.flops_per_step))

    def ratio(self, budget: float) -> float:
        """Tokens per parameter at a budget."""
        return budget / self.flops_per_step * self.tokens_per_step / self.params


def shape_of(width: int) -> Shape:
    """The member with this width. Raises `UsageError` for a width that is no multiple of 8, or below 16."""
    if width < 16 or width % 8:
        raise UsageError(f"The width {width} is not in the family: give a multiple of 8 from 16 on.")
    head = next(size for size in (64, 32, 16, 8) if width % size == 0 and width // size >= 2)
    return Shape(width, max(2, round(width / ASPECT)), 16 * math.ceil(width / 6), width // head)


def choose_shapes(
    sized: Callable[[int], Sized], budget: float, count: int, ratio: float, spread: float
) -> list[Sized]:
    """The `count` sizes of the family for a budget, smallest first.

    1. Aims: tokens per parameter, evenly in the logarithm, from `ratio * spread` down to `ratio / spread`.
    2. For each aim, from the smallest size on, the nearest member that is wider than the one before.

    Raises `UsageError` where the family ends before the aims do.
    """
    step = 0.0 if count == 1 else 2 / (count - 1)
    aims = [ratio * spread ** (1 - i * step) for i in range(count)]
    chosen: list[Sized] = []
    for aim in aims:
        best: tuple[float, Sized] | None = None
        for width in WIDTHS:
            if chosen and width <= chosen[-1].shape.width:
                continue
            one = sized(width)
            distance = abs(math.log(one.ratio(budget) / aim))
            if best is not None and distance >= best[0]:
                break  # tokens per parameter fall with the width
            best = distance, one
        if best is None:
            raise UsageError(
                f"The budget {budget:g} is too large for {count} sizes of the family, which ends at width "
                f"{WIDTHS[-1]}: give a smaller budget, or more tokens per parameter."
            )
        chosen.append(best[1])
    return chosen


def check_choice(count: int, ratio: float, spread: float, widths: Sequence[int]) -> None:
    """Raise `UsageError` for a rule from which no parabola can follow."""
    if widths:
        if len(set(widths)) < 3:
            raise UsageError(
                f"--widths needs at least 3 different ones for a parabola, not {len(set(widths))}."
            )
        for width in widths:
            shape_of(width)
        return
    if count < 3:
        raise UsageError(
            f"--sizes {count} is too small: a parabola needs at least 3, and 4 leave a residual."
        )
    if not (math.isfinite(ratio) and ratio > 0):
        raise UsageError(f"--tokens-per-parameter {ratio:g}: give a number above 0, for example 20.")
    if not (math.isfinite(spread) and spread > 1):
        raise UsageError(f"--spread {spread:g}: give a number above 1, for example 8.")
