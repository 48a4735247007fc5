"""The figure and the table of `transfer.py`, of what has been run so far."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from lowrise.report.charts import Series, chart

FIGURE = Path(__file__).parent.parent / "docs" / "images" / "transfer.svg"
NAMES = {
    "spectron": "Spectron",
    "loramuon": "LoRA-Muon",
    "lowrank": "low-rank AdamW",
    "muon": "Muon",
    "adamw": "AdamW",
}
WIDTH, HEIGHT, TITLE = 430, 250, 26
EDGE = 0.03  # nats above the best: where the high side of a curve is measured
RANGE = 0.12  # nats above the best of a size that a panel shows
STYLE = """
svg { font-family: system-ui, sans-serif; --c0: #1f77b4; --c1: #d9730d; --c2: #2a9d4e; --c3: #b3261e;
  --c4: #6b4fa0; }
.paper { fill: #ffffff } .grid { stroke: #e3e3e3 } .axis { stroke: #888888 }
.tick, .key { font-size: 12px; fill: #444444 } .label { font-size: 12px; fill: #222222 }
.title { font-size: 14px; font-weight: 600; fill: #111111 }
.line { fill: none; stroke: var(--c); stroke-width: 2 } .dot { fill: var(--c) }
"""


class Curve(NamedTuple):
    """Mean losses of one size over the seeds that have them all, by the power of 2 of the rate."""

    size: int
    losses: dict[int, float]

    @property
    def inside(self) -> bool:
        """Whether the best rate has worse ones on both sides."""
        best = min(self.losses, key=self.losses.__getitem__)
        return min(self.losses) < best < max(self.losses)

    @property
    def best(self) -> float:
        """The best power of 2, between grid points by the parabola through the best and its neighbours."""
        k = min(self.losses, key=self.losses.__getitem__)
        a, b, c = (self.losses.get(k + i, math.nan) for i in (-1, 0, 1))
        if not self.inside or not all(map(math.isfinite, (a, b, c))) or a + c == 2 * b:
            return float(k)
        return k + 0.5 * (a - c) / (a - 2 * b + c)

    @property
    def edge(self) -> float:
        """The power of 2 above the best at which the loss is `EDGE` above it, between grid points by a
        straight line; NaN where the grid ends before."""
        best = min(self.losses.values())
        points = [
            (k, loss) for k, loss in self.losses.items() if k >= min(self.losses, key=self.losses.__getitem__)
        ]
        for (k, a), (following, b) in pairwise(points):
            if b >= best + EDGE:
                return k + (best + EDGE - a) / (b - a) * (following - k) if math.isfinite(b) else float(k)
        return math.nan


def curves(record: Mapping[str, Any]) -> dict[tuple[str, str, bool], list[Curve]]:
    """(method, axis, with multipliers) -> a curve for each size."""
    found: dict[tuple[str, str, bool], dict[int, dict[int, list[float]]]] = {}
    for key, loss in record["runs"].items():
        match = re.fullmatch(r"(\w+) width=(\d+) rank=(\d+) (\w+) seed=\d+ 2\^(-?\d+)", key)
        assert match is not None, key
        method, width, rank = match[1], int(match[2]), int(match[3])
        value = math.inf if loss is None else loss
        axes = {"width": width} if rank in (0, width // 4) else {}
        if rank and width == 128:
            axes["rank"] = rank
        kinds = {match[4] == "transfer"}
        if width == record["base"]["width"] and rank in (0, record["base"]["rank"]):
            kinds = {True, False}  # its multipliers are 1: the same run
        for axis, size in axes.items():
            for kind in kinds:
                sizes = found.setdefault((method, axis, kind), {})
                sizes.setdefault(size, {}).setdefault(int(match[5]), []).append(value)
    return {
        kind: [
            Curve(size, {e: sum(v) / len(v) for e, v in sorted(losses.items()) if len(v) == _most(losses)})
            for size, losses in sorted(sizes.items())
            if len(losses) >= 3
        ]
        for kind, sizes in found.items()
    }


def _most(losses: Mapping[int, list[float]]) -> int:
    return max(map(len, losses.values()))


def summary(record: Mapping[str, Any]) -> str:
    """A Markdown table: for every size the best rate and where the loss has risen by `EDGE`, as powers of 2
    of the grid's middle, and their spread over the sizes."""
    lines = [
        "| method | over | `[transfer]` | best rate, log2, by size | spread | rise, log2, by size | spread |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for method, axis, transfer in sorted(curves(record), key=_order):
        found = curves(record)[method, axis, transfer]
        cells = [NAMES[method], axis, "yes" if transfer else "no"]
        for mark in ("best", "edge"):
            values = {c.size: getattr(c, mark) for c in found}
            known = [v for v in values.values() if math.isfinite(v)]
            marks = {c.size: "" if mark == "edge" or c.inside else " (end)" for c in found}
            shown = (f"{s}: {v:+.1f}{marks[s]}" for s, v in values.items() if math.isfinite(v))
            cells.append(", ".join(shown))
            cells.append(f"{max(known) - min(known):.1f}" if len(known) > 1 else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _order(kind: tuple[str, str, bool]) -> tuple[int, bool, bool]:
    method, axis, transfer = kind
    return [*NAMES].index(method), axis == "rank", not transfer


def draw(record: Mapping[str, Any]) -> None:
    """Panels of loss over rate, a row for each method and axis, with multipliers on the left."""
    found = {kind: drawn for kind, drawn in curves(record).items() if drawn}
    rows = list(dict.fromkeys(kind[:2] for kind in sorted(found, key=_order)))
    parts = []
    for i, (method, axis) in enumerate(rows):
        for column, transfer in enumerate((True, False)):
            if (method, axis, transfer) in found:
                start = record["start"][method]
                title = f"{NAMES[method]}, {axis}s, {'with' if transfer else 'without'} [transfer]"
                panel = _panel(found[method, axis, transfer], start)
                parts.append(_placed(panel, title, column * WIDTH, i * (HEIGHT + TITLE)))
    width, height = 2 * WIDTH, len(rows) * (HEIGHT + TITLE)
    FIGURE.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Loss over learning rate for several widths and ranks"><style>{STYLE}</style>'
        f'<rect class="paper" width="{width}" height="{height}"/>{"".join(parts)}</svg>\n',
        encoding="utf-8",
    )


def _panel(found: list[Curve], start: float) -> str:
    series = []
    for color, curve in enumerate(found):
        best = min(curve.losses.values())
        rates = [start * 2.0**exponent for exponent in curve.losses]
        above = [loss - best if math.isfinite(loss) else math.nan for loss in curve.losses.values()]
        series.append(Series(str(curve.size), rates, above, color=color, kind="both"))
    rates = [start * 2.0**e for e in (-2, 4.5)]
    return chart(
        series,
        x_label="learning rate of the matrices",
        y_label="loss above the best",
        width=WIDTH,
        height=HEIGHT,
        log_x=True,
        x_range=(rates[0], rates[1]),
        y_range=(0.0, RANGE),
    )


def _placed(panel: str, title: str, x: int, y: int) -> str:
    """The drawing in a chart of a report, without the page around it."""
    drawing = panel[panel.index("<svg ") : panel.index("</svg>") + len("</svg>")]
    place = f'<svg x="{x}" y="{y + TITLE}" width="{WIDTH}" height="{HEIGHT}" '
    return f'<text class="title" x="{x + 62}" y="{y + 20}">{title}</text>' + drawing.replace(
        "<svg ", place, 1
    )
