"""The pictures of docs/architecture.md are what its script draws from the source today."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree as ET

import pytest
from doc_pages import PAGES, ROOT

DRAWING = runpy.run_path(str(ROOT / "docs" / "make_architecture.py"))
PICTURES = DRAWING["pictures"]()


@pytest.mark.parametrize("name", PICTURES)
def test_the_committed_picture_is_the_drawn_one(name: str) -> None:
    ET.fromstring(PICTURES[name])
    committed = (ROOT / "docs" / "images" / name).read_text(encoding="utf-8")
    assert committed == PICTURES[name], f"{name} is out of date: run python docs/make_architecture.py"
    assert f"images/{name}" in PAGES["docs/architecture.md"].read_text(encoding="utf-8")


def test_every_room_is_in_the_picture_and_in_the_table() -> None:
    page = PAGES["docs/architecture.md"].read_text(encoding="utf-8")
    for rooms in DRAWING["floors"]():
        for room in rooms:
            assert f">{room}</text>" in PICTURES["floors.svg"]
            assert f"`{room}`" in page


def test_a_detour_makes_an_arrow_unnecessary() -> None:
    edges = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert DRAWING["without_detours"](edges) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_no_arrow_passes_behind_a_room() -> None:
    """The arrangement has found columns where an arrow meets the rooms at its ends alone."""
    rows, edges = DRAWING["floors"](), DRAWING["without_detours"](DRAWING["imports"]())
    columns = DRAWING["arranged"](rows, edges)
    floor_of = {room: floor for floor, rooms in enumerate(rows) for room in rooms}
    for room, others in edges.items():
        for other in others:
            for floor in range(floor_of[other] + 1, floor_of[room]):
                part = (floor_of[room] - floor) / (floor_of[room] - floor_of[other])
                passed = columns[room] + (columns[other] - columns[room]) * part
                assert all(abs(columns[r] - passed) >= 0.5 for r in rows[floor]), (room, other, floor)


def test_a_station_without_its_code_is_an_error() -> None:
    station = DRAWING["Station"]("gone", "optim", "no_such_function", "")
    with pytest.raises(LookupError, match="no_such_function of optim is defined in no file"):
        DRAWING["file_of"](station)
