"""Which shapes of the family (`model/shapes.py`) are run at a budget of FLOPs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lowrise.errors import UsageError
from lowrise.model.shapes import WIDTHS, Shape, shape_of


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
