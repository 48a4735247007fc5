"""Differences with their intervals as a picture: one line each, zero marked, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from lowrise.report.charts import COLORS
from lowrise.report.html import LETTER, drawing
from lowrise.report.ticks import nice_ticks, tick_label

_RIGHT, _ROW, _TOP, _BOTTOM = 20, 30, 12, 44  # pixels


@dataclass(frozen=True)
class Bar:
    """One interval. `faint` for what stands beside the one that counts; `remark` is written behind it."""

    name: str
    mean: float
    low: float
    high: float
    color: int = 0
    faint: bool = False
    remark: str = ""


def intervals(bars: Sequence[Bar], *, x_label: str, width: int = 860, empty: str = "") -> str:
    """An `<svg>` element with a line for each bar, in the order given; a sentence where there is none."""
    drawn = [bar for bar in bars if all(math.isfinite(v) for v in (bar.mean, bar.low, bar.high))]
    if not drawn:
        return f'<p class="empty">{escape(empty or "There is no interval yet.")}</p>'
    left = 20 + min(320, max(LETTER * len(bar.name) for bar in drawn))
    right = _RIGHT + max(LETTER * len(bar.remark) for bar in drawn)
    low, high = min(0.0, *(bar.low for bar in drawn)), max(0.0, *(bar.high for bar in drawn))
    pad = 0.06 * (high - low) or 1.0
    low, high = low - pad, high + pad
    base = _TOP + _ROW * len(drawn)

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    parts = []
    ticks = nice_ticks(low, high, 6)
    for tick in ticks:
        css = "axis" if abs(tick) < 1e-12 else "grid"
        parts.append(
            f'<line class="{css}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP}" y2="{base}"/>'
            f'<text class="tick" x="{x(tick):.1f}" y="{base + 16}" text-anchor="middle">'
            f"{tick_label(tick, ticks)}</text>"
        )
    for i, bar in enumerate(drawn):
        parts.append(_bar(bar, x, _TOP + _ROW * (i + 0.5), left))
    parts.append(
        f'<text class="label" x="{(left + width - right) / 2:.1f}" y="{base + 36}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    return drawing(width, base + _BOTTOM, x_label, "".join(parts))


def _bar(bar: Bar, x: Callable[[float], float], y: float, left: float) -> str:
    a, m, b = x(bar.low), x(bar.mean), x(bar.high)
    css = "faint" if bar.faint else "line"
    ends = "".join(
        f'<line class="{css}" x1="{end:.1f}" x2="{end:.1f}" y1="{y - 5:.1f}" y2="{y + 5:.1f}"/>'
        for end in (a, b)
    )
    told = escape(f"{bar.name}: {bar.mean:+.4f} [{bar.low:+.4f}, {bar.high:+.4f}]")
    return (
        f'<g style="--c:var(--c{bar.color % COLORS})"><title>{told}</title>'
        f'<text class="key" x="{left - 12:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(bar.name)}</text>'
        f'<line class="{css}" x1="{a:.1f}" x2="{b:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>{ends}'
        f'<circle class="dot" cx="{m:.1f}" cy="{y:.1f}" r="{3 if bar.faint else 4.5}"/>'
        f'<text class="tick" x="{b + 10:.1f}" y="{y + 4:.1f}">{escape(bar.remark)}</text></g>'
    )
