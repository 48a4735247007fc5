"""Pictures of comparisons and sweeps: well-formed, escaped, and what they must show."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from lowrise.report.charts import Series, chart
from lowrise.report.heatmap import heatmap
from lowrise.report.intervals import Bar, intervals
from lowrise.report.parallel import Line, parallel_coordinates

NASTY = 'a<b>&"c"'


def numbers(svg: str, attribute: str, tag: str = "line") -> list[float]:
    return [float(v) for v in re.findall(rf'<{tag} class="line"[^>]* {attribute}="([-0-9.]+)"', svg)]


def test_intervals_lie_where_they_say() -> None:
    bars = [Bar("first", -0.2, -0.3, -0.1, remark="better"), Bar(NASTY, 0.1, 0.05, 0.2)]
    svg = intervals(bars, x_label="difference")
    ElementTree.fromstring(svg)
    assert NASTY not in svg
    assert "better" in svg
    zero = float(re.search(r'<line class="axis" x1="([0-9.]+)"', svg)[1])
    ends = numbers(svg, "x1")  # each bar, then its two ends
    assert ends[0] < ends[2] < zero < ends[3], "the first lies left of zero, the second right of it"


def test_what_has_no_interval_is_left_out() -> None:
    assert "no interval yet" in intervals([Bar("x", math.nan, 0.0, 1.0)], x_label="d")
    assert intervals([], x_label="d", empty="Two seeds are needed.").count("Two seeds") == 1
    ElementTree.fromstring(intervals([Bar("x", 0.0, 0.0, 0.0)], x_label="d"))


def test_the_lowest_cell_is_framed_and_strongest() -> None:
    cells: dict[tuple[int, int], float | str] = {(0, 0): 3.0, (1, 0): 2.0, (0, 1): "diverged", (1, 1): 9.0}
    svg = heatmap(cells, columns=["1", NASTY], rows=["x", "y"], x_label="a", y_label="b", value_label="loss")
    ElementTree.fromstring(svg)
    assert NASTY not in svg
    assert svg.count('stroke="var(--c1)"') == 1
    shades = [float(v) for v in re.findall(r'fill-opacity="([0-9.]+)"', svg)]
    assert shades[1] == max(shades)
    assert shades[2] == 0.0
    assert "diverged" in svg


def test_a_map_without_numbers_says_so() -> None:
    svg = heatmap({(0, 0): "failed"}, columns=["1"], rows=["1"], x_label="a", y_label="b", value_label="loss")
    assert svg == '<p class="empty">No values of loss were recorded.</p>'


@pytest.mark.parametrize("values", [(0.001, 8, "x", 2.5), (0.1, 8, NASTY, None)])
def test_every_trial_is_a_line_and_the_best_are_in_front(values: tuple) -> None:
    lines = [
        Line("trial 1", values),
        Line("trial 2", (0.01, 8, "y", 2.0)),
        Line("trial 3", (0.02, 8, "y", 3.0)),
    ]
    svg = parallel_coordinates(["lr", "rank", NASTY, "loss"], lines, best=1)
    ElementTree.fromstring(svg)
    assert NASTY not in svg
    assert svg.count("<path") == 3
    drawn = re.findall(r'<path class="(\w+)"', svg)
    assert drawn == ["faint", "faint", "line"], "the best last, above the others"
    assert svg.index("trial 2") > svg.index("trial 3")


def ticks(svg: str) -> list[str]:
    return re.findall(r'<text class="tick"[^>]*>([^<]*)</text>', svg)


def test_a_list_of_values_has_its_values_as_ticks_and_a_range_its_middle() -> None:
    rates = [0.001, 0.01, 0.02, 0.001, 0.01]
    lines = [Line(f"{i}", (rate, 10.0 * (i + 1), 3.0 + i)) for i, rate in enumerate(rates)]
    assert ticks(parallel_coordinates(["lr", "rank", "loss"], lines))[:6] == [
        "0.001", "0.01", "0.02", "10", "30", "50",
    ]  # fmt: skip
    near = [Line(f"{i}", (value, 3.0 + i)) for i, value in enumerate([1.0, 1.01, 2.0, 1.0])]
    assert ticks(parallel_coordinates(["x", "loss"], near))[:2] == ["1", "2"], "labels do not overlap"


def test_a_tenfold_range_is_logarithmic() -> None:
    lines = [Line(f"{i}", (rate, 3.0 + i)) for i, rate in enumerate([0.001, 0.003, 0.01])]
    assert ticks(parallel_coordinates(["lr", "loss"], lines))[:3] == ["0.001", "0.003162", "0.01"]


def test_no_label_of_an_axis_is_cut_off_at_the_right() -> None:
    svg = chart([Series("loss", [0.001, 0.01], [3.0, 2.0])], x_label="lr", y_label="loss", width=450)
    labels = re.findall(r'<text class="tick" x="([0-9.]+)" y="[0-9.]+" text-anchor="(\w+)">([^<]*)<', svg)
    last = max(labels, key=lambda label: float(label[0]))
    assert last == ("449.0", "end", "0.010")
    assert all(float(x) + 3.4 * len(text) <= 450 for x, anchor, text in labels if anchor == "middle")


def test_numbers_of_things_have_no_ticks_at_halves() -> None:
    def x_ticks(x: list[float]) -> list[str]:
        svg = chart([Series("", x, [1.0] * len(x))], x_label="layer", y_label="rank", width=450)
        return re.findall(r'<text class="tick"[^>]* text-anchor="middle">([^<]*)<', svg)

    assert x_ticks([0.0, 1.0]) == ["0", "1"]
    assert x_ticks([0.0, 1.0, 2.0]) == ["0", "1", "2"]
    assert x_ticks([0.0, 0.5, 1.0]) == ["0", "0.5", "1.0"]


def test_without_results_there_is_a_sentence() -> None:
    assert "No trial has a result" in parallel_coordinates(["a", "loss"], [Line("t", (1, None))])
