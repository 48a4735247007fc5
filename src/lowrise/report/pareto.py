"""What a loss was bought with: a chart for each cost, a dot for each recipe, and the line of those that no
other recipe beats in both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lowrise.files import is_known
from lowrise.report import html
from lowrise.report.charts import COLORS, Series, chart
from lowrise.report.ticks import LOG_FROM

_SAME = 1.02  # largest over smallest cost up to which all have the same


@dataclass(frozen=True)
class Bought:
    """A recipe with its loss (mean; `sd` over seeds, None for one seed) and what it cost."""

    name: str
    loss: float
    sd: float | None
    costs: Mapping[str, float | None]
    color: int = 0


def pareto_section(title: str, bought: Sequence[Bought], costs: Mapping[str, str], *, y_label: str) -> str:
    """A section with a chart for each of `costs` (key -> label of the axis) that is not the same for all;
    empty where there is nothing to weigh: fewer than two recipes.
    """
    bought = [one for one in bought if math.isfinite(one.loss)]
    if len(bought) < 2:
        return ""
    figures, same = [], []
    for key, label in costs.items():
        there = [(one, float(cost)) for one in bought if is_known(cost := one.costs.get(key))]
        values = [cost for _, cost in there]
        if len(there) < 2:
            continue
        if max(values) <= _SAME * min(values):
            same.append(label.split(" (")[0])
        else:
            figures.append(_figure(there, label, y_label))
    about = (
        "Down and left is better. What lies above the dashed line or right of it is beaten in both by one on "
        "the line, by their means; bars are one standard deviation over the seeds, so who is just behind "
        "the line may belong to it."
    )
    if same:
        about += f" The same for all, so not drawn: {', '.join(same)}."
    return html.section(title, html.note(about), html.pair(*figures)) if figures else ""


def frontier(pairs: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the (cost, loss) pairs that no other pair beats: none has less of one and no more of the
    other. In the order of their costs.
    """
    order = sorted(range(len(pairs)), key=lambda i: pairs[i])
    kept: list[int] = []
    for i in order:
        if not kept or pairs[i][1] < pairs[kept[-1]][1] or pairs[i] == pairs[kept[-1]]:
            kept.append(i)
    return kept


def _figure(there: Sequence[tuple[Bought, float]], label: str, y_label: str) -> str:
    pairs = [(cost, one.loss) for one, cost in there]
    costs = [cost for cost, _ in pairs]
    best = frontier(pairs)
    line = _stairs([pairs[i] for i in best], max(costs), max(one.loss + (one.sd or 0.0) for one, _ in there))
    series = [Series("", [x for x, _ in line], [y for _, y in line], kind="guide")]
    for i in [*best, *(i for i in range(len(there)) if i not in best)]:  # the line's names find room first
        one, cost = there[i]
        low, high = (None, None) if one.sd is None else ([one.loss - one.sd], [one.loss + one.sd])
        notes = ["on the line"] if i in best else []
        series.append(
            Series(one.name, [cost], [one.loss], one.color, "points", low, high, notes, tag=one.name)
        )
    log = min(costs) > 0 and max(costs) >= LOG_FROM * min(costs)
    width, height = (450, 280) if len(there) <= COLORS else (560, 400)  # many names need room
    return chart(
        series,
        x_label=label,
        y_label=y_label,
        width=width,
        height=height,
        log_x=log,
        legend=False,
        margin=0.08,
    )


def _stairs(pairs: Sequence[tuple[float, float]], dearest: float, worst: float) -> list[tuple[float, float]]:
    """The corners of the frontier: what is reached at a cost stays reached at every higher one, and below the
    least cost nothing is.
    """
    corners = [(pairs[0][0], worst), pairs[0]]
    for (_, before), (cost, loss) in pairwise(pairs):
        corners += [(cost, before), (cost, loss)]
    return [*corners, (dearest, pairs[-1][1])]
