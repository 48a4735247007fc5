"""A forest plot as inline SVG: a row for each estimate, its interval as a bar, so that one sees what agrees.
Coloured by the page, as the charts are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from lowrise.report.html import LETTER, drawing
from lowrise.report.ticks import nice_ticks, tick_label

_ROW, _TOP, _BOTTOM, _RIGHT = 26, 8, 44, 16  # pixels


@dataclass(frozen=True)
class Estimate:
    """One row. Ends that are not finite reach the edge of the plot, ends that are NaN are not drawn."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    color: int = 0


def forest(rows: Sequence[Estimate], *, x_label: str, mark: float | None = None, width: int = 860) -> str:
    """An `<svg>` with the rows in the order given; `mark` is a value that a line is drawn at."""
    rows = [row for row in rows if math.isfinite(row.value)]
    if not rows:
        return f'<p class="empty">No values of {escape(x_label)} were found.</p>'
    left = min(0.5 * width, 20 + LETTER * max(len(row.name) for row in rows))
    finite = [v for row in rows for v in (row.value, row.low, row.high) if math.isfinite(v)]
    finite += [] if mark is None else [mark]
    pad = 0.06 * (max(finite) - min(finite)) or 0.1 * abs(finite[0]) or 1.0
    low, high = min(finite) - pad, max(finite) + pad
    base = _TOP + _ROW * len(rows)

    def place(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return left + share * (width - _RIGHT - left)

    ticks = nice_ticks(low, high, 7)
    parts = [
        f'<line class="grid" x1="{place(t):.1f}" x2="{place(t):.1f}" y1="{_TOP}" y2="{base}"/>'
        f'<text class="tick" x="{place(t):.1f}" y="{base + 17}" text-anchor="middle">'
        f"{tick_label(t, ticks)}</text>"
        for t in ticks
    ]
    if mark is not None:
        parts.append(
            f'<line class="axis" x1="{place(mark):.1f}" x2="{place(mark):.1f}" y1="{_TOP}" y2="{base}"/>'
        )
    parts += [_row(row, _TOP + _ROW * (i + 0.5), left, place) for i, row in enumerate(rows)]
    middle = (left + width - _RIGHT) / 2
    parts.append(
        f'<text class="label" x="{middle:.1f}" y="{base + 38}" text-anchor="middle">{escape(x_label)}</text>'
    )
    return drawing(width, base + _BOTTOM, f"{x_label} with intervals", "".join(parts))


def _row(row: Estimate, y: float, left: float, at: Callable[[float], float]) -> str:
    text = f"{row.name}: {row.value:.4g}"
    bar = ""
    if not (math.isnan(row.low) or math.isnan(row.high)):
        text += f" [{row.low:.4g}, {row.high:.4g}]"
        bar = f'<line class="line" x1="{at(row.low):.1f}" x2="{at(row.high):.1f}" y1="{y}" y2="{y}"/>'
    return (
        f'<g style="--c:var(--c{row.color % 8})"><text class="key" x="{left - 12:.1f}" y="{y + 4}" '
        f'text-anchor="end">{escape(row.name)}</text>{bar}'
        f'<circle class="dot" cx="{at(row.value):.1f}" cy="{y}" r="4">'
        f"<title>{escape(text)}</title></circle></g>"
    )
