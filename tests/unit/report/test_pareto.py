"""Pareto charts: the frontier, where it is drawn, names beside dots; in a browser, how they are read."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import in_browser, needs_browser

from lowrise.report.charts import Series, chart
from lowrise.report.differences import differences
from lowrise.report.pareto import Bought, frontier, pareto_section
from lowrise.report.tags import CHARACTER, HEIGHT, place_tags


def test_the_frontier_is_what_nothing_beats_in_both() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        pairs = [tuple(pair) for pair in rng.integers(0, 6, (12, 2)).tolist()]

        def beaten(pair: tuple[int, ...], by: tuple[int, ...]) -> bool:
            return by[0] <= pair[0] and by[1] <= pair[1] and by != pair

        expected = {pair for pair in pairs if not any(beaten(pair, other) for other in pairs)}
        found = frontier(pairs)
        assert {pairs[i] for i in found} == expected
        assert [pairs[i] for i in found] == sorted(pairs[i] for i in found)
        assert all(i in found for i, pair in enumerate(pairs) if pair in expected)  # equal ones too


def bought(name: str, loss: float, size: float | None, **more: float) -> Bought:
    return Bought(name, loss, 0.01, {"size": size, "tokens": 100.0, **more}, 0)


def numbers(section: str) -> list[dict[str, Any]]:
    return [
        json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', section)
    ]


def test_a_chart_for_each_cost_that_differs() -> None:
    found = pareto_section(
        "Bought",
        [bought("a", 3.0, 100.0), bought("b", 2.0, 1000.0), bought("c", 3.5, 200.0), bought("d", 2.5, None)],
        {"size": "size (bytes)", "tokens": "tokens", "absent": "nothing"},
        y_label="loss",
    )
    (drawn,) = numbers(found)
    assert drawn["x"]["label"] == "size (bytes)"
    assert drawn["x"]["log"]  # 100 to 1000 is eight times and more
    guide, *dots = drawn["series"]
    assert guide["kind"] == "guide"
    corners = list(zip(guide["x"], guide["y"], strict=True))
    assert corners == [(100, 3.51), (100, 3), (1000, 3), (1000, 2), (1000, 2)]
    assert [(dot["name"], dot["low"], dot["high"]) for dot in dots] == [
        ("a", [2.99], [3.01]),
        ("b", [1.99], [2.01]),
        ("c", [3.49], [3.51]),
    ]
    assert [dot["notes"] for dot in dots] == [["on the line"], ["on the line"], None]
    assert "The same for all, so not drawn: tokens." in found


@pytest.mark.parametrize("losses", [[], [3.0], [3.0, float("nan")]])
def test_nothing_to_weigh_gives_no_section(losses: list[float]) -> None:
    some = [bought(str(i), loss, 100.0 * (i + 1)) for i, loss in enumerate(losses)]
    assert pareto_section("Bought", some, {"size": "size"}, y_label="loss") == ""


def test_names_keep_clear_of_dots_of_each_other_and_of_the_edge() -> None:
    rng = np.random.default_rng(1)
    dots = [tuple(place) for place in (rng.random((40, 2)) * [300, 200] + [50, 10]).tolist()]
    names = [f"name-{i}" for i in range(40)]
    placed = place_tags(dots, names, (50, 350, 10, 210))
    boxes = []
    for spot, name in zip(placed, names, strict=True):
        if spot is not None:
            x, y, anchor = spot
            width = CHARACTER * len(name)
            left = {"start": x, "middle": x - width / 2, "end": x - width}[anchor]
            boxes.append((left, left + width, y - HEIGHT + 3, y + 3))
    assert placed[0] is not None  # the first one has the choice
    assert 10 < len(boxes) < 40
    for a, b in combinations(boxes, 2):
        assert not (a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3])
    for left, right, top, bottom in boxes:
        assert 50 <= left < right <= 350
        assert 10 <= top < bottom <= 210
        assert not any(left < x < right and top < y < bottom for x, y in dots)


def test_a_legend_of_many_lines_takes_nothing_from_the_plot() -> None:
    def plot_height(count: int) -> float:
        series = [Series(f"a curve with a long name {i}", [1, 2], [i, i + 1], i) for i in range(count)]
        _, _, top, base = numbers(chart(series, x_label="x", y_label="y", width=450, height=270))[0]["box"]
        return base - top

    assert plot_height(2) - 30 < plot_height(30) <= plot_height(1)


def test_differences_of_a_few_have_columns_and_of_many_values() -> None:
    settings = {"layer.rank": {"a": 8, "b": None}, "seed": {"a": 1, "b": 1}}
    assert "<td>layer.rank</td><td>8</td><td>unset</td>" in differences(settings, "ab", key="setting")
    assert "seed" not in differences(settings, "ab", key="setting")
    assert differences({"seed": settings["seed"]}, "ab", key="setting").startswith('<p class="note">They are')
    many = {"layer.rank": dict.fromkeys("abcdef", 8) | {"g": 16}}
    table = differences(many, "abcdefg", key="setting")
    assert "<td>layer.rank</td><td>16</td><td>g</td>" in table
    assert "<td></td><td>8</td><td>the other 6</td>" in table


# ---- in a browser


def scatter() -> list[str]:
    some = [bought("small", 3.0, 100.0), bought("large", 2.0, 900.0), bought("bad <b>", 3.5, 200.0)]
    return [pareto_section("Bought", some, {"size": "size"}, y_label="loss")]


@needs_browser
def test_keys_go_from_dot_to_dot_and_the_pointer_reads_the_nearest(tmp_path: Path) -> None:
    said = in_browser(
        scatter(),
        """
        const seen = [];
        for (const name of ["ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"]) {
          key(name); seen.push(tip());
        }
        pointer("pointermove", 0.95); seen.push(tip());
        return seen;
        """,
        tmp_path,
    )
    lines = [[line.strip() for line in text.splitlines()] for text in said]
    assert lines[0] == ["size 100", "small 3 [2.99, 3.01] on the line"]
    assert lines[1] == ["size 200", "bad <b> 3.5 [3.49, 3.51]"]
    assert lines[2] == lines[3] == ["size 900", "large 2 [1.99, 2.01] on the line"]
    assert lines[4] == lines[1]
    assert lines[5] == lines[2]


@needs_browser
def test_names_are_where_the_page_had_them_and_follow_a_zoom(tmp_path: Path) -> None:
    said = in_browser(
        scatter(),
        """
        const names = () => [...svg.querySelectorAll("text.tag")].map((one) => [one.textContent,
          +one.getAttribute("x"), +one.getAttribute("y"), one.getAttribute("text-anchor")]);
        const seen = [names()];
        key("0"); seen.push(names());
        pointer("pointerdown", 0.7); pointer("pointermove", 1); pointer("pointerup", 1);
        seen.push(names(), svg.querySelectorAll("path.guide").length);
        return seen;
        """,
        tmp_path,
    )
    before, again, zoomed, guides = said
    assert [name for name, *_ in before] == ["small", "large", "bad <b>"]
    assert again == before
    assert [name for name, *_ in zoomed] == ["large"]
    assert guides == 1


@needs_browser
def test_a_wide_drawing_scrolls_on_a_narrow_screen_and_the_page_does_not(tmp_path: Path) -> None:
    wide = chart([Series("", [1, 2], [1, 2])], x_label="x", y_label="y")
    said = in_browser(
        [wide],
        """
        document.body.style.width = "360px";
        const box = svg.parentElement;
        return [box.scrollWidth > box.clientWidth, svg.getBoundingClientRect().width,
          document.body.scrollWidth <= 360];
        """,
        tmp_path,
    )
    assert said[0]
    assert said[1] >= 0.8 * 860
    assert said[2]
