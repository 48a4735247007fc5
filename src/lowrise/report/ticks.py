"""Where the ticks of an axis are, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from lowrise.report.formatting import scientific, si

LOG_FROM = 8.0  # ratio of the largest to the smallest positive number from which an axis is logarithmic
_UNITS = {3: "k", 6: "M", 9: "G", 12: "T"}


def nice_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside [low, high], about `count` of them."""
    raw = (high - low) / max(count, 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 5) if m * power >= raw), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 in between where the range has fewer than three decades; linear ticks
    below a third of one.
    """
    decades = math.log10(high / low)
    if decades < 0.35:
        return nice_ticks(low, high, 5)
    steps = (1,) if decades >= 3 else (1, 2, 5)
    stride = max(1, math.ceil(decades / 7)) if decades >= 3 else 1
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1, stride)
    return [
        m * 10.0**e for e in exponents for m in steps if low * (1 - 1e-9) <= m * 10.0**e <= high * (1 + 1e-9)
    ]


def whole_ticks(ticks: Sequence[float]) -> list[float]:
    """Those at whole numbers, unless only one is."""
    found = [tick for tick in ticks if abs(tick - round(tick)) < 1e-9]
    return found if len(found) > 1 else list(ticks)


def tick_label(value: float, ticks: Sequence[float]) -> str:
    """All labels of one axis in one notation: one prefix or exponent, as many decimals as its step needs.

    Ticks that span more than a decade and a half (a logarithmic axis) are each written on their own.
    """
    sizes = [abs(tick) for tick in ticks if tick]
    if value == 0 or not sizes:
        return "0"
    largest = max(sizes)
    steps = [abs(b - a) for a, b in pairwise(ticks) if b != a]
    smallest = min(steps, default=largest)
    if min(steps, default=1.0) * 1.5 < max(steps, default=1.0):  # unequal steps: logarithmic
        short = si(value, digits=1) if 1e4 <= value < 1e15 else f"{value:g}" if 1e-4 <= value < 1e4 else ""
        return short or scientific(value, 1)
    if 1e-3 <= largest < 1e4:
        return f"{value:.{_decimals(smallest)}f}"
    exponent = math.floor(math.log10(largest))
    unit = f"e{exponent}"
    if largest >= 1e4:
        exponent = exponent // 3 * 3
        unit = " " + _UNITS[exponent] if exponent in _UNITS else f"e{exponent}"
    return f"{value / 10.0**exponent:.{_decimals(smallest / 10.0**exponent)}f}{unit}"


def _decimals(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9))
