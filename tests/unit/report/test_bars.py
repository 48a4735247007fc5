"""Stacked bars: lengths, marks, legend, and as a file of their own."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from lowrise.report.bars import Stack, stacked_bars, standalone

NASTY = 'a<b>&"c"'


def drawn(**more: object) -> str:
    stacks = [Stack("first", (3.0, 1.0), mark=3.5), Stack(NASTY, (1.0, 1.0))]
    return stacked_bars(stacks, parts=("one", "two"), label="bytes", show=lambda v: f"{v:g} B", **more)


def test_bars_are_as_long_as_their_values() -> None:
    svg = drawn(mark="peak", line=("memory", 5.0))
    ElementTree.fromstring(svg)
    assert NASTY not in svg
    boxes = re.findall(r'<rect x="([0-9.]+)" y="(?:40|66)" width="([0-9.]+)"', svg)
    (x0, w0), (x1, w1), (x2, w2), (x3, w3) = ((float(x), float(w)) for x, w in boxes)
    assert x0 == x2
    assert x1 == pytest.approx(x0 + w0, abs=0.1)
    assert x3 == pytest.approx(x2 + w2, abs=0.1)
    assert w0 == pytest.approx(3 * w1, rel=0.01) == pytest.approx(3 * w2, rel=0.01)
    assert w2 == pytest.approx(w3, rel=0.01)
    mark = float(re.search(r'<path d="M([0-9.]+) 37V', svg)[1])
    assert mark == pytest.approx(x0 + 3.5 / 3 * w0, abs=0.2)
    line = float(re.search(r'<line x1="([0-9.]+)"', svg)[1])
    assert line == pytest.approx(x0 + 5 / 3 * w0, abs=0.2)
    assert "first, peak: 3.5 B" in svg
    assert "memory: 5 B" in svg


def test_a_file_of_its_own_has_the_page_s_colours() -> None:
    text = standalone(drawn(), "a <title>")
    root = ElementTree.fromstring(text.encode())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    style = root.find("{http://www.w3.org/2000/svg}style").text
    assert "prefers-color-scheme: dark" in style
    assert "--c0:" in style
    assert root.find("{http://www.w3.org/2000/svg}title").text == "a <title>"


def test_nothing_is_a_sentence_and_zeros_are_bars() -> None:
    assert "nothing to draw" in stacked_bars([], parts=("a",), label="x", show=str)
    ElementTree.fromstring(stacked_bars([Stack("z", (0.0,))], parts=("a",), label="x", show=str))
