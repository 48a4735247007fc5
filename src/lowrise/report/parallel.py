"""Parallel coordinates: an axis for each key and one for the result, a line for each trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from lowrise.files import is_known
from lowrise.report.html import drawing
from lowrise.report.ticks import LOG_FROM

_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 90, 34, 18  # pixels
_FEW = 6  # values of a key up to which the ticks are the values
_APART = 0.06  # of the height, between two ticks


@dataclass(frozen=True)
class Line:
    """One trial: its values in the order of the axes, the result last; None where it has none."""

    name: str
    values: tuple[Any, ...]


def parallel_coordinates(
    axes: Sequence[str], lines: Sequence[Line], *, best: int = 0, width: int = 860, height: int = 320
) -> str:
    """An `<svg>` element. The last axis is the result, lower is better; the `best` lines with the lowest
    results are drawn strongly and in front. A line without a result ends before the last axis.
    """
    drawn = [line for line in lines if len(line.values) == len(axes)]
    if len(axes) < 2 or not any(is_known(line.values[-1]) for line in drawn):
        return '<p class="empty">No trial has a result yet.</p>'
    columns = [_Axis.of([line.values[i] for line in drawn]) for i in range(len(axes))]
    step = (width - _LEFT - _RIGHT) / (len(axes) - 1)
    base = height - _BOTTOM
    order = sorted(drawn, key=_result, reverse=True)
    strong = {id(line) for line in order[len(order) - best :]}
    parts = []
    for line in order:
        points = []
        for i, (axis, value) in enumerate(zip(columns, line.values, strict=True)):
            share = axis.share(value)
            if share is not None:
                points.append(f"{_LEFT + i * step:.1f} {base - share * (base - _TOP):.1f}")
        css, color = ("line", 1) if id(line) in strong else ("faint", 0)
        result = line.values[-1]
        told = escape(f"{line.name}: {result:.6g}" if is_known(result) else f"{line.name}: no result")
        parts.append(
            f'<g style="--c:var(--c{color})"><title>{told}</title>'
            f'<path class="{css}" d="M{"L".join(points)}"/></g>'
        )
    for i, (name, axis) in enumerate(zip(axes, columns, strict=True)):
        x = _LEFT + i * step
        anchor = "start" if i == 0 else "end" if i == len(axes) - 1 else "middle"
        shift = {"start": -_LEFT + 4, "end": _RIGHT - 4, "middle": 0}[anchor]
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{base}"/>')
        parts.append(
            f'<text class="label" x="{x + shift:.1f}" y="16" text-anchor="{anchor}">{escape(name)}</text>'
        )
        for share, text in axis.ticks():
            y = base - share * (base - _TOP)
            parts.append(f'<text class="tick" x="{x + 7:.1f}" y="{y + 4:.1f}">{escape(text)}</text>')
    about = f"{axes[-1]} against {', '.join(axes[:-1])}"
    return drawing(width, height, about, "".join(parts))


def _result(line: Line) -> float:
    return line.values[-1] if is_known(line.values[-1]) else math.inf


@dataclass(frozen=True)
class _Axis:
    """Numbers between their extremes (logarithmic where they span much), or names at equal distances."""

    tried: tuple[float, ...] = ()
    """The numbers, where they are few that came several times: the values of a list, and no draws."""

    names: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @classmethod
    def of(cls, values: Sequence[Any]) -> _Axis:
        known = [value for value in values if value is not None]
        if not all(is_known(value) for value in known):
            return cls(names=tuple(dict.fromkeys(str(value) for value in known)))
        values = sorted(set(known))
        low, high = values[0], values[-1]
        tried = tuple(values) if len(values) <= min(_FEW, len(known) - 1) else ()
        return cls(tried, (), low, high, low > 0 and high >= LOG_FROM * low)

    def share(self, value: Any) -> float | None:
        """From 0 (below) to 1 (above); None where there is no value."""
        if value is None:
            return None
        if self.names:
            place, count = self.names.index(str(value)), len(self.names)
            return 0.5 if count == 1 else place / (count - 1)
        if self.high == self.low:
            return 0.5
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        if self.names:
            return [(self.share(name) or 0.0, name) for name in self.names]
        if self.low == self.high:
            return [(0.5, f"{self.low:.4g}")]
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        found = [(0.0, f"{self.low:.4g}")]
        for value in self.tried[1:-1] or ((middle,) if not self.tried else ()):
            share = self.share(value) or 0.0
            if found[-1][0] + _APART <= share <= 1 - _APART:
                found.append((share, f"{value:.4g}"))
        return [*found, (1.0, f"{self.high:.4g}")]
