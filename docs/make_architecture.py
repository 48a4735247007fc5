"""Draws the two pictures of docs/architecture.md from the source: `python docs/make_architecture.py`.

- images/floors.svg: the rooms on their floors (the table of tests/unit/test_floors.py) and who imports whom
- images/gradient.svg: the life of a gradient, each station with the file in which its code is found
"""

from __future__ import annotations

import ast
import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "lowrise"
IMAGES = ROOT / "docs" / "images"

INK, PALE, LINE = "#1f2933", "#eef2f6", "#7b8794"
FONT = "font-family='Helvetica, Arial, sans-serif'"


class Station(NamedTuple):
    """Where a gradient is, and the function or class of a room that has it in its hands."""

    title: str
    room: str
    symbol: str
    what: str


STATIONS = (
    Station("backward", "model", "next_token_loss", "p.grad is filled, micro-batch after micro-batch"),
    Station("sum", "distributed", "GradientSum", "over ranks, in buckets, while the backward pass goes on"),
    Station(
        "clip", "distributed", "clip_gradients_", "one global norm; if it is not finite, the step is skipped"
    ),
    Station("step", "optim", "Optimizer", "per group: pairs (A, B), triples (U, s, V), single parameters"),
    Station(
        "transfer", "distributed", "Transfer", "only where ranks divide the work: to the owner of the matrix"
    ),
    Station("widen", "optim", "widened", "float32 for bfloat16 parameters; moments are opened in float32"),
    Station("view", "optim", "split", "a tensor that is not 2-D is seen as one matrix or as a stack"),
    Station(
        "rule", "optim", "OPTIMIZERS", "the method reads the gradient, never writes it: direction U (m x n)"
    ),
    Station(
        "write", "optim", "decay_and_subtract_", "W <- (1 - lr wd) W - lr U, rounded once; moments are stored"
    ),
    Station(
        "end", "layers", "LowRankLayer", "p.grad = None; layers that merge or change with time are called"
    ),
)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    for name, text in pictures().items():
        (IMAGES / name).write_text(text, encoding="utf-8")
        print(IMAGES / name)


def pictures() -> dict[str, str]:
    """File name -> SVG."""
    return {"floors.svg": floors_picture(), "gradient.svg": gradient_picture()}


# ---- what the source says


def floors() -> tuple[tuple[str, ...], ...]:
    """The floors, from the ground up, as the test has them."""
    return tuple(_test_of_floors().FLOORS)


def imports() -> dict[str, set[str]]:
    """Room -> rooms that any of its files imports, also within functions and for types."""
    test = _test_of_floors()
    edges: dict[str, set[str]] = {room: set() for rooms in test.FLOORS for room in rooms}
    for path in test.MODULES:
        room = test.room_of(path)
        named = {name.split(".")[1] for name in test.imported(path)} & edges.keys()
        edges[room] |= named - {room}
    return edges


def without_detours(edges: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The same graph without the edges that follow from others (its transitive reduction)."""
    reached: dict[str, set[str]] = {}

    def reach(room: str) -> set[str]:
        if room not in reached:
            reached[room] = set().union(*({other} | reach(other) for other in edges[room]))
        return reached[room]

    return {
        room: {o for o in others if not any(o in reach(x) for x in others - {o})}
        for room, others in edges.items()
    }


def file_of(station: Station) -> str:
    """The file of the room that defines the symbol; `LookupError` where there is none or several."""
    room = SOURCE / station.room
    files = sorted(room.rglob("*.py")) if room.is_dir() else [room.with_suffix(".py")]
    found = [path for path in files if station.symbol in _defined(path)]
    if len(found) != 1:
        places = ", ".join(str(path.relative_to(SOURCE)) for path in found) or "no file"
        raise LookupError(f"{station.symbol} of {station.room} is defined in {places}: correct STATIONS")
    return str(found[0].relative_to(SOURCE))


def _defined(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def _test_of_floors() -> ModuleType:
    path = ROOT / "tests" / "unit" / "test_floors.py"
    spec = importlib.util.spec_from_file_location("floors_of_the_house", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- drawing

ROOM_WIDTH, ROOM_HEIGHT, FLOOR_HEIGHT, MARGIN = 104, 32, 76, 24
COLUMNS, COLUMN_WIDTH = 8, 124
WIDTH = COLUMNS * COLUMN_WIDTH
SWEEPS = 4


def floors_picture() -> str:
    rows, edges = floors(), without_detours(imports())
    height = 2 * MARGIN + len(rows) * FLOOR_HEIGHT
    columns = arranged(rows, edges)
    places = {
        room: ((columns[room] + 0.5) * COLUMN_WIDTH, height - MARGIN - (floor + 0.5) * FLOOR_HEIGHT)
        for floor, rooms in enumerate(rows)
        for room in rooms
    }
    parts = []
    for floor in range(0, len(rows), 2):
        y = height - MARGIN - (floor + 1) * FLOOR_HEIGHT
        parts.append(f"<rect x='0' y='{y:g}' width='{WIDTH}' height='{FLOOR_HEIGHT}' fill='{PALE}'/>")
    parts += [
        _arrow(*_ends(places[room], places[other])) for room in sorted(edges) for other in sorted(edges[room])
    ]
    for room, (x, y) in places.items():
        parts.append(_box(x - ROOM_WIDTH / 2, y - ROOM_HEIGHT / 2, ROOM_WIDTH, ROOM_HEIGHT))
        parts.append(_text(x, y + 5, room, "middle", 14))
    title = "Rooms of lowrise; an arrow means imports, and arrows that follow from others are left out"
    return _svg(WIDTH, height, title, parts)


def arranged(rows: Sequence[Sequence[str]], edges: Mapping[str, set[str]]) -> dict[str, int]:
    """Room -> column. Floor by floor the best columns while the others stay: few arrows that pass behind a
    room, then short ones.
    """
    middle = COLUMNS // 2 + 1  # a start from which the search finds columns without a crossing
    columns = {room: (middle + i) % COLUMNS for rooms in rows for i, room in enumerate(rooms)}
    floor_of = {room: floor for floor, rooms in enumerate(rows) for room in rooms}
    arrows = [(room, other) for room in sorted(edges) for other in sorted(edges[room])]

    def cost() -> float:
        total = 0.0
        for room, other in arrows:
            (x, y), (u, v) = (columns[room], floor_of[room]), (columns[other], floor_of[other])
            total += abs(x - u)
            for floor in range(v + 1, y):
                passed = x + (u - x) * (y - floor) / (y - v)
                total += sum(20 for r in rows[floor] if abs(columns[r] - passed) < 0.6)
        return total

    for _ in range(SWEEPS):
        for rooms in rows:
            tried = []
            for choice in itertools.permutations(range(COLUMNS), len(rooms)):
                columns |= dict(zip(rooms, choice, strict=True))
                tried.append((cost(), choice))
            columns |= dict(zip(rooms, min(tried)[1], strict=True))
    return columns


def _ends(upper: tuple[float, float], lower: tuple[float, float]) -> tuple[float, float, float, float]:
    """From the lower side of one box to the upper side of another, or between sides on one floor."""
    (x1, y1), (x2, y2) = upper, lower
    if y1 == y2:
        sign = 1 if x2 > x1 else -1
        return x1 + sign * ROOM_WIDTH / 2, y1, x2 - sign * ROOM_WIDTH / 2, y2
    lean = max(-0.35, min(0.35, (x2 - x1) / WIDTH)) * ROOM_WIDTH
    return x1 + lean, y1 + ROOM_HEIGHT / 2, x2 - lean, y2 - ROOM_HEIGHT / 2


def gradient_picture() -> str:
    step, width, left = 62, 760, 150
    height = 2 * MARGIN + step * len(STATIONS) - (step - 44)
    parts = []
    for i, station in enumerate(STATIONS):
        y = MARGIN + i * step
        parts.append(_box(MARGIN, y, left - 2 * MARGIN + 40, 44))
        parts.append(_text(MARGIN + (left - 2 * MARGIN + 40) / 2, y + 27, station.title, "middle", 14))
        parts.append(_text(left + 36, y + 18, station.what, "start", 14))
        parts.append(_text(left + 36, y + 37, f"{file_of(station)}: {station.symbol}", "start", 12, LINE))
        if i + 1 < len(STATIONS):
            middle = MARGIN + (left - 2 * MARGIN + 40) / 2
            parts.append(_arrow(middle, y + 44, middle, y + step))
    return _svg(width, height, "The life of a gradient, from the backward pass to the updated weight", parts)


def _svg(width: float, height: float, title: str, parts: list[str]) -> str:
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:g} {height:g}' role='img'>\n"
        f"<title>{escape(title)}</title>\n"
        "<defs><marker id='tip' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' "
        "orient='auto'>"
        f"<path d='M0,0 L8,4 L0,8 z' fill='{LINE}'/></marker></defs>\n"
        f"<rect width='{width:g}' height='{height:g}' fill='white'/>\n"
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def _box(x: float, y: float, width: float, height: float) -> str:
    return (
        f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' rx='6' fill='white' "
        f"stroke='{INK}' stroke-width='1.2'/>"
    )


def _text(x: float, y: float, text: str, anchor: str, size: int, colour: str = INK) -> str:
    return (
        f"<text x='{x:g}' y='{y:g}' text-anchor='{anchor}' font-size='{size}' fill='{colour}' {FONT}>"
        f"{escape(text)}</text>"
    )


def _arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return (
        f"<line x1='{x1:g}' y1='{y1:g}' x2='{x2:g}' y2='{y2:g}' stroke='{LINE}' stroke-width='1.3' "
        "marker-end='url(#tip)'/>"
    )


if __name__ == "__main__":
    main()
