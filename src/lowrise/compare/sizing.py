"""Rank or width by a budget of size: the largest that keeps to it.

The rule, for every recipe alike:

1. `auto`: the rank, where it changes what is budgeted (a layer's rank; an optimizer's for bytes of state);
   else the width. `rank` and `width` ask for one of them.
2. Rank: the largest r from 1 to the model's width. Where the recipe gives a share of min(m, n) it stays a
   share, r / width; where it gives an integer it stays one.
3. Width: the number of layers and heads stays, the width of a head is the largest even number, the MLP keeps
   its proportion to the width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from lowrise.compare.budget import RunPlan, Size
from lowrise.compare.options import SizeBy
from lowrise.errors import UsageError
from lowrise.files import is_known
from lowrise.model.config import PRESETS

_LARGEST_HEAD = 1 << 14

PlanWith = Callable[[dict[str, Any]], RunPlan]


@dataclass(frozen=True)
class Sized:
    """What was chosen for a recipe: settings, in words, and how much of the budget they use."""

    settings: dict[str, Any]
    words: str
    used: int
    is_width: bool


def choose_size(label: str, tree: Mapping[str, Any], size: Size, by: SizeBy, plan_with: PlanWith) -> Sized:
    """The largest rank or width of a recipe within a budget. `tree` is its configuration, `plan_with` plans
    it with settings.

    Raises `UsageError` where even the smallest does not fit, and for a rank that cannot be chosen.
    """
    for knob in _rank_knobs(tree, size) if by != "width" else ():
        smallest = size.of(plan_with(knob.settings(1)))
        if smallest != size.of(plan_with({})):
            return _largest(label, size, knob, plan_with)
    if by == "rank":
        raise UsageError(
            f"{label} has no rank that changes its {size.what}: give --size-by auto or width, which chooses "
            "the model's width."
        )
    return _largest(label, size, _width_knob(tree), plan_with)


@dataclass(frozen=True)
class _Knob:
    """A number from 1 to `most` that the quantity grows with, and the settings that it stands for. A value
    that the recipe refuses is too small (a width below a rank) or too large (a rank above a matrix's sides).
    """

    settings: Callable[[int], dict[str, Any]]
    words: Callable[[int], str]
    most: int
    is_width: bool = False


def _largest(label: str, size: Size, knob: _Knob, plan_with: PlanWith) -> Sized:
    """The last value that fits: doubled until one does not, then halved between the two."""

    @cache
    def quantity(value: int) -> int | None:
        try:
            return size.of(plan_with(knob.settings(value)))
        except UsageError:
            return None

    def fits(value: int) -> bool:
        there = quantity(value)
        return knob.is_width if there is None else there <= size.amount

    low, high = 0, 1
    while high <= knob.most and fits(high):
        low, high = high, 2 * high
    high = min(high, knob.most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    used = quantity(low) if low else None
    if used is None:
        narrower = "" if knob.is_width else ", choose the width (--size-by width)"
        raise UsageError(
            f"{label} does not fit in {size}: at {knob.words(high)}, the smallest, it has "
            f"{size.show(quantity(high))}. Give at least that{narrower}, or leave {label} out."
        )
    return Sized(knob.settings(low), knob.words(low), used, knob.is_width)


def _rank_knobs(tree: Mapping[str, Any], size: Size) -> Iterator[_Knob]:
    """The layer's rank; where bytes of state are budgeted, the optimizer's too."""
    width = _shape(tree)["hidden_size"]
    for section in ("layer", "optimizer") if size.unit == "bytes" else ("layer",):
        rank = tree.get(section, {}).get("rank")
        if rank is None:
            continue
        if isinstance(rank, Mapping) or not is_known(rank):
            raise UsageError(
                f"{section}.rank = {rank!r} is a table, and a budget of {size.what} chooses one rank: give "
                f"one number (--set {section}.rank=0.25), or --size-by width."
            )
        yield _rank_knob(f"{section}.rank", isinstance(rank, float), width)


def _rank_knob(key: str, is_share: bool, width: int) -> _Knob:
    def settings(value: int) -> dict[str, Any]:
        return {key: float(f"{value / width:.12g}") if is_share else value}

    return _Knob(settings, lambda value: f"{key} {settings(value)[key]:g}", width)


def _width_knob(tree: Mapping[str, Any]) -> _Knob:
    shape = _shape(tree)
    ratio = shape["intermediate_size"] / shape["hidden_size"]

    def settings(value: int) -> dict[str, Any]:
        hidden = shape["num_heads"] * 2 * value
        return {"model.hidden_size": hidden, "model.intermediate_size": max(1, round(ratio * hidden))}

    def words(value: int) -> str:
        return f"width {settings(value)['model.hidden_size']}"

    return _Knob(settings, words, _LARGEST_HEAD // 2, is_width=True)


def _shape(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The preset's numbers with those that the recipe sets."""
    model = tree.get("model", {})
    return {**PRESETS[model["preset"]], **model}
