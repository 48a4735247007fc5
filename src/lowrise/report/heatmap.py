"""A table of numbers as a picture: the lower a cell, the stronger its colour; the lowest is framed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from lowrise.report.html import drawing

_LEFT, _RIGHT, _TOP, _BOTTOM, _CELL = 96, 14, 26, 58, 38  # pixels
_MOST, _LEAST, _WHITE = 0.92, 0.06, 0.55  # opacity of the lowest and highest cell; above: light text
_CHARACTER = 7.2  # width of a digit at the cells' 12 px


def heatmap(
    cells: Mapping[tuple[int, int], float | str],
    *,
    columns: Sequence[str],
    rows: Sequence[str],
    x_label: str,
    y_label: str,
    value_label: str,
    width: int = 860,
) -> str:
    """An `<svg>` element. `cells`: (column, row) -> a number, or a word for a cell without one; the first row
    is the lowest, as on an axis. Colours span from the lowest number to the third quartile, so that a few
    bad cells do not make all others equal.
    """
    numbers = [v for v in cells.values() if not isinstance(v, str) and math.isfinite(v)]
    if not numbers:
        return f'<p class="empty">No values of {escape(value_label)} were recorded.</p>'
    low, high = min(numbers), float(np.quantile(numbers, 0.75))
    step = min((width - _LEFT - _RIGHT) / len(columns), 150.0)
    height = _TOP + _CELL * len(rows) + _BOTTOM
    base = _TOP + _CELL * len(rows)
    digits = _digits(numbers)
    parts = []
    for (column, row), value in cells.items():
        x, y = _LEFT + column * step, base - (row + 1) * _CELL
        where = f"{x_label} {columns[column]}, {y_label} {rows[row]}"
        parts.append(_cell(x, y, step, value, low, high, digits, where))
    for i, name in enumerate(columns):
        parts.append(
            f'<text class="tick" x="{_LEFT + (i + 0.5) * step:.1f}" y="{base + 18}" text-anchor="middle">'
            f"{escape(name)}</text>"
        )
    for i, name in enumerate(rows):
        parts.append(
            f'<text class="tick" x="{_LEFT - 10}" y="{base - (i + 0.5) * _CELL + 4:.1f}" text-anchor="end">'
            f"{escape(name)}</text>"
        )
    parts.append(
        f'<text class="label" x="{_LEFT + step * len(columns) / 2:.1f}" y="{base + 42}" text-anchor="middle">'
        f'{escape(x_label)}</text><text class="label" x="4" y="15">{escape(y_label)}</text>'
    )
    about = f"{value_label} over {x_label} and {y_label}"
    return drawing(width, height, about, "".join(parts))


def _digits(numbers: Sequence[float]) -> int:
    """Decimals that tell the cells apart: two more than the spread's first digit, at most five."""
    spread = max(numbers) - min(numbers)
    return 3 if spread == 0 else min(max(2, 2 - math.floor(math.log10(spread))), 5)


def _cell(
    x: float, y: float, step: float, value: float | str, low: float, high: float, digits: int, where: str
) -> str:
    if isinstance(value, str) or not math.isfinite(value):
        text, opacity, is_best = str(value), 0.0, False
    else:
        share = 0.0 if high <= low else min((value - low) / (high - low), 1.0)
        text, opacity, is_best = f"{value:.{digits}f}", _MOST - (_MOST - _LEAST) * share, value == low
    shown = text if _CHARACTER * len(text) < step - 6 else ""
    color = "var(--paper)" if opacity > _WHITE else "var(--ink)"
    frame = ' stroke="var(--c1)" stroke-width="3"' if is_best else ' stroke="var(--line)"'
    return (
        f"<g><title>{escape(f'{where}: {text}')}</title>"
        f'<rect x="{x + 1.5:.1f}" y="{y + 1.5:.1f}" width="{step - 3:.1f}" height="{_CELL - 3}" rx="3" '
        f'fill="var(--c0)" fill-opacity="{opacity:.2f}"{frame}/>'
        f'<text x="{x + step / 2:.1f}" y="{y + _CELL / 2 + 4:.1f}" text-anchor="middle" '
        f'style="fill:{color}">{escape(shown)}</text></g>'
    )
