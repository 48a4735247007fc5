"""Line charts as inline SVG: sharp at any size, a few kilobytes each, and coloured by the page (light and
dark), with their numbers beside them for `page.js`, which reads them out, zooms and changes the axes.

A chart is a pure function of its series. Long series are thinned to what the eye can tell apart, keeping
each pixel's extremes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from lowrise.report.html import LETTER, drawing
from lowrise.report.tags import place_tags
from lowrise.report.ticks import log_ticks, nice_ticks, tick_label, whole_ticks

COLORS = 8  # the page defines --c0 ... --c7; later series repeat them dashed
_LEFT, _RIGHT, _TOP, _BOTTOM = (
    62,
    14,
    10,
    40,
)  # pixels around the plot; the same for all, so that stacked charts align
_LEGEND = 26.0  # the top of a plot below a legend of one line

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Series:
    """One curve. `kind`: a `line`, a thin `faint` line behind others, `points`, `both`, or a `guide`: a
    dashed line that is looked at and not read out.

    `low` and `high` give a band around a line, or error bars on points. Non-finite y values are gaps.
    `notes`: a text for each point, which the page shows beside its value. `tag`: written beside its dots
    (of `points`), where there is room.
    """

    name: str
    x: Values
    y: Values
    color: int = 0
    kind: Literal["line", "faint", "points", "both", "guide"] = "line"
    low: Values | None = None
    high: Values | None = None
    notes: Sequence[str] = ()
    tag: str = ""


@dataclass(frozen=True)
class _Scale:
    """Maps data to pixels, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, values: Values) -> np.ndarray:
        data = np.asarray(values, dtype=np.float64)
        low, high = self.low, self.high
        if self.log:
            data = np.log10(np.where(data > 0, data, np.nan))
            low, high = math.log10(low), math.log10(high)
        return self.start + (data - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else nice_ticks(self.low, self.high, count)


def chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    width: int = 860,
    height: int = 280,
    log_x: bool = False,
    log_y: bool = False,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    legend: bool = True,
    margin: float = 0.05,
) -> str:
    """A `<figure>` with an `<svg>` of axes, grid, legend (from two named series on) and the series in the
    order given, and with its numbers as JSON. `margin`: share of the range of x that is left free at either
    side of dots.
    """
    drawn = [_clean(one, log_x, log_y) for one in series]
    drawn = [one for one in drawn if len(one.x)]
    if not drawn:
        return f'<p class="empty">No values of {escape(y_label)} were recorded.</p>'
    named = sum(bool(one.name) for one in drawn)
    key, top = _legend(drawn, width) if legend and named > 1 else ("", float(_TOP))
    height += int(max(0.0, top - _LEGEND))  # a legend of several lines takes nothing from the plot
    free = margin if all(one.kind in ("points", "guide") for one in drawn) else 0.0  # no dot on the edge
    x_scale = _Scale(
        *(x_range or _extent([one.x for one in drawn], log_x, free)), _LEFT, width - _RIGHT, log_x
    )
    ys = [values for one in drawn for values in (one.y, one.low, one.high) if values is not None]
    y_scale = _Scale(*(y_range or _extent(ys, log_y, 0.05)), height - _BOTTOM, top, log_y)
    clip = (
        f"clip-{width}-{height}-{top:.0f}"  # says all there is to the rectangle: equal names are equal clips
    )
    box = (_LEFT, width - _RIGHT, top, height - _BOTTOM)
    body = "".join(_draw(one, x_scale, y_scale, width) for one in drawn) + _tags(drawn, x_scale, y_scale, box)
    numbers = {
        "size": [width, height],
        "box": box,
        "x": {"label": x_label, "range": [x_scale.low, x_scale.high], "log": log_x},
        "y": {"label": y_label, "range": [y_scale.low, y_scale.high], "log": log_y},
        "series": [_numbers(one, width) for one in drawn],
    }
    whole = all(bool(np.all(np.asarray(one.x) == np.rint(one.x))) for one in drawn)
    content = (
        f'<clipPath id="{clip}"><rect x="{_LEFT - 5}" y="{top - 5}" width="{width - _LEFT - _RIGHT + 10}" '
        f'height="{height - top - _BOTTOM + 10}"/></clipPath>'
        f"{_labels(x_label, y_label, width, height, top)}"
        f'<g class="axes">{_axes(x_scale, y_scale, width, height, whole)}</g>{key}'
        f'<g class="curves" clip-path="url(#{clip})">{body}</g>'
    )
    return (
        f'<figure class="chart" tabindex="0">{drawing(width, height, f"{y_label} over {x_label}", content)}'
        f'<script type="application/json">{_as_script(numbers)}</script></figure>'
    )


def decimate(x: np.ndarray, y: np.ndarray, buckets: int) -> np.ndarray:
    """Indices of at most `2 * buckets + 2` points that keep the lowest and the highest of each bucket,
    and both ends.
    """
    if len(x) <= 2 * buckets:
        return np.arange(len(x))
    edges = np.linspace(0, len(x), buckets + 1).astype(int)
    kept = {0, len(x) - 1}
    for start, end in pairwise(edges.tolist()):
        part = y[start:end]
        if np.isfinite(part).any():
            kept.update((start + int(np.nanargmin(part)), start + int(np.nanargmax(part))))
        else:
            kept.add(start)  # keeps a gap a gap
    return np.array(sorted(kept))


def smooth(y: Values, fraction: float = 0.02) -> np.ndarray:
    """Centred moving average over about `fraction` of the points: no lag, and a window that shrinks
    towards the ends.

    Non-finite values are left out of the averages; where a window holds nothing else, the result is NaN.
    """
    values = np.asarray(y, dtype=np.float64)
    count = len(values)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    place = np.arange(count)
    half = np.minimum(np.minimum(place, count - 1 - place), int(fraction * count / 2))
    start, end = place - half, place + half + 1
    total, number = sums[end] - sums[start], counts[end] - counts[start]
    return np.divide(total, number, out=np.full(count, np.nan), where=number > 0)


def _clean(series: Series, log_x: bool, log_y: bool) -> Series:
    """Arrays, sorted by x, without what cannot be placed; y outside a logarithmic axis becomes a gap."""
    x, y = np.asarray(series.x, dtype=np.float64), np.asarray(series.y, dtype=np.float64)
    order = np.argsort(x, kind="stable")
    order = order[np.isfinite(x[order]) & ((x[order] > 0) if log_x else True)]

    def take(values: Values) -> np.ndarray:
        taken = np.asarray(values, dtype=np.float64)[order]
        return np.where(np.isfinite(taken) & ((taken > 0) if log_y else True), taken, np.nan)

    low = None if series.low is None else take(series.low)
    high = None if series.high is None else take(series.high)
    y = take(y)
    if not np.isfinite(y).any():
        return Series(series.name, np.empty(0), np.empty(0), series.color, series.kind)
    notes = [series.notes[i] for i in order.tolist()] if series.notes else ()
    return replace(series, x=x[order], y=y, low=low, high=high, notes=notes)


def _extent(arrays: Sequence[Values], log: bool, margin: float) -> tuple[float, float]:
    data = np.concatenate([np.asarray(a, dtype=np.float64) for a in arrays])
    data = data[np.isfinite(data)]
    low, high = float(data.min()), float(data.max())
    if log:
        stretch = max((high / low) ** margin, 1.02 if margin else 1.0)
        return (low / stretch, high * stretch) if high > low or margin else (low / 1.5, high * 1.5)
    if low == high:
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    pad = (high - low) * margin
    return (max(low - pad, 0.0) if low >= 0 else low - pad), high + pad


def _numbers(series: Series, width: int) -> dict[str, Any]:
    """A series for `page.js`: the points that are drawn, to six digits, None for gaps."""
    kept = decimate(np.asarray(series.x), np.asarray(series.y), width)

    def plain(values: Values | None) -> list[float | None] | None:
        if values is None:
            return None
        taken = np.asarray(values)[kept].tolist()
        return [float(f"{v:.6g}") if math.isfinite(v) else None for v in taken]

    return {
        "name": series.name,
        "color": series.color,
        "kind": series.kind,
        "x": plain(series.x),
        "y": plain(series.y),
        "low": plain(series.low),
        "high": plain(series.high),
        "notes": [series.notes[i] for i in kept.tolist()] if series.notes else None,
        "tag": series.tag,
    }


def _as_script(values: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _labels(x_label: str, y_label: str, width: int, height: int, top: float) -> str:
    middle = (height - _BOTTOM + top) / 2
    return (
        f'<text class="label" x="{(_LEFT + width - _RIGHT) / 2}" y="{height - 6}" text-anchor="middle">'
        f'{escape(x_label)}</text><text class="label" transform="translate(14 {middle:.1f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )


def _axes(x: _Scale, y: _Scale, width: int, height: int, whole: bool) -> str:
    """`whole`: the x are numbers of things (layers, steps), of which there is no half."""
    parts = []
    x_ticks, y_ticks = x.ticks(max(2, width // 95)), y.ticks(max(2, height // 50))
    if whole:
        x_ticks = whole_ticks(x_ticks)
    for tick, place in zip(y_ticks, y(y_ticks), strict=True):
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{_LEFT - 8}" y="{place + 4:.1f}" text-anchor="end">'
            f"{tick_label(tick, y_ticks)}</text>"
        )
    base = height - _BOTTOM
    for tick, place in zip(x_ticks, x(x_ticks), strict=True):
        parts.append(f'<line class="axis" x1="{place:.1f}" x2="{place:.1f}" y1="{base}" y2="{base + 4}"/>')
        label = tick_label(tick, x_ticks)
        # At the right end of the drawing there is no room for the second half of a label.
        at, anchor = (place, "middle") if place + _half(label) <= width else (width - 1, "end")
        parts.append(f'<text class="tick" x="{at:.1f}" y="{base + 17}" text-anchor="{anchor}">{label}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{base}" y2="{base}"/>')
    return "".join(parts)


def _half(label: str) -> float:
    """Half the width of a tick's label; as page.js has it."""
    return LETTER * len(label) / 2


def _style(series: Series) -> str:
    dash = ";stroke-dasharray:6 4" if series.color >= COLORS and series.kind != "points" else ""
    return f"--c:var(--c{series.color % COLORS}){dash}"


def _dot(series: Series) -> str:
    """Colours that come a second time have hollow dots, as their lines are dashed."""
    return "dot hollow" if series.color >= COLORS else "dot"


def _legend(series: Sequence[Series], width: int) -> tuple[str, float]:
    """Entries above the plot, wrapped to its width, and the y where the plot may begin."""
    parts, x, y = [], float(_LEFT), 14.0
    for number, one in enumerate(series):
        if not one.name:
            continue
        needed = 30 + LETTER * len(one.name)
        if x + needed > width - _RIGHT and x > _LEFT:
            x, y = float(_LEFT), y + 18
        css, end, middle = "faint" if one.kind == "faint" else "line", x + 18, y - 4
        mark = f'<line class="{css}" x1="{x}" x2="{end}" y1="{middle}" y2="{middle}"/>'
        if one.kind == "points":
            mark = f'<circle class="{_dot(one)}" cx="{x + 9}" cy="{middle}" r="3.5"/>'
        text = f'<text class="key" x="{x + 23}" y="{y}">{escape(one.name)}</text>'
        parts.append(f'<g class="key" data-series="{number}" style="{_style(one)}">{mark}{text}</g>')
        x += needed + 8
    return "".join(parts), y + 12


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """`M` at the start and after each gap, `L` elsewhere."""
    parts, pen_down = [], False
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        if math.isfinite(b):
            parts.append(f"{'L' if pen_down else 'M'}{a:.1f} {b:.1f}")
        pen_down = math.isfinite(b)
    return "".join(parts)


def _draw(series: Series, x_scale: _Scale, y_scale: _Scale, width: int) -> str:
    data_x, data_y = np.asarray(series.x), np.asarray(series.y)
    kept = decimate(data_x, data_y, width)
    x, y = x_scale(data_x[kept]), y_scale(data_y[kept])
    parts = [f'<g style="{_style(series)}">']
    if series.low is not None and series.high is not None:
        low, high = y_scale(np.asarray(series.low)[kept]), y_scale(np.asarray(series.high)[kept])
        parts.append(_error_bars(x, low, high) if series.kind == "points" else _band(x, low, high))
    if series.kind != "points":
        css = series.kind if series.kind in ("faint", "guide") else "line"
        parts.append(f'<path class="{css}" d="{_path(x, y)}"/>')
    if series.kind in ("points", "both") or np.isfinite(y).sum() == 1:
        for i, a, b in zip(kept.tolist(), x.tolist(), y.tolist(), strict=True):
            if math.isfinite(b):
                value = escape(f"{series.name}: {data_y[i]:.6g} at {data_x[i]:.6g}")
                place = f'cx="{a:.1f}" cy="{b:.1f}" r="{3.5 if series.tag else 3}"'
                parts.append(f'<circle class="{_dot(series)}" {place}><title>{value}</title></circle>')
    return "".join(parts) + "</g>"


def _tags(series: Sequence[Series], x: _Scale, y: _Scale, box: tuple[float, float, float, float]) -> str:
    """The names beside the dots of all series."""
    tagged = [
        (one.tag, px, py) for one in series if one.tag for px, py in zip(x(one.x), y(one.y), strict=True)
    ]
    places = place_tags([(px, py) for _, px, py in tagged], [name for name, _, _ in tagged], box)
    return "".join(
        f'<text class="tag" x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{at[2]}">{escape(name)}</text>'
        for (name, _, _), at in zip(tagged, places, strict=True)
        if at is not None
    )


def _band(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    whole = np.isfinite(low) & np.isfinite(high)
    if whole.sum() < 2:
        return ""
    there = [f"{a:.1f} {b:.1f}" for a, b in zip(x[whole], high[whole], strict=True)]
    back = [f"{a:.1f} {b:.1f}" for a, b in zip(x[whole][::-1], low[whole][::-1], strict=True)]
    return f'<path class="band" d="M{"L".join(there + back)}Z"/>'


def _error_bars(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    return "".join(
        f'<line class="spread" x1="{a:.1f}" x2="{a:.1f}" y1="{b:.1f}" y2="{c:.1f}"/>'
        for a, b, c in zip(x, low, high, strict=True)
        if math.isfinite(b) and math.isfinite(c)
    )
