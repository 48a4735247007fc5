"""The plan of the house: a room imports rooms of lower floors and its own, never upwards, never in a circle.

Imports within functions and for types count too: what only a type checker sees is still a dependency.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lowrise

SOURCE = Path(lowrise.__file__).parent
FLOORS = (
    ("errors", "names", "signals", "rng", "lazy"),
    ("files", "console", "flags", "flag_values"),
    ("linalg", "distributed"),
    ("layers", "data"),
    ("model", "checkpoint", "optim"),
    ("methods", "plugins", "citations"),
    ("config", "ledger", "allocator"),
    ("runs",),
    ("inference", "report", "export"),
    ("pretrained", "serve"),
    ("train", "evaluation"),
    ("compare", "audit"),
    ("sweep", "scaling", "track"),
    ("pages",),
    ("cli", "__main__"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(p for p in SOURCE.rglob("*.py") if p.name != "__init__.py" or p.parent != SOURCE)


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full names of the modules of lowrise that a file imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{a.name}" for a in node.names} | {node.module}
    return {name for name in names if name.startswith("lowrise.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_import_leads_upwards(path: Path) -> None:
    here = room_of(path)
    rooms = {name.split(".")[1] for name in imported(path)} & FLOOR_OF.keys()
    above = {room for room in rooms if room != here and FLOOR_OF[room] > FLOOR_OF[here]}
    beside = {room for room in rooms if room != here and FLOOR_OF[room] == FLOOR_OF[here]}
    assert not above, f"{path.name} is of {here} and imports {above}, which lie above"
    assert not beside or not circle_of_rooms(), f"{beside} and {here} import each other"


def test_rules_know_nothing_of_the_engine() -> None:
    for path in (SOURCE / "optim" / "rules").glob("*.py"):
        outside = {name for name in imported(path) if name.startswith("lowrise.optim.engine")}
        assert not outside, f"{path.name} imports {outside}; a rule is arithmetic on tensors"


def test_optim_shows_methods_and_nothing_else() -> None:
    from lowrise.optim import OPTIMIZERS

    files = {path.stem for path in (SOURCE / "optim").glob("*.py")} - {"__init__"}
    assert files == OPTIMIZERS.keys()


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in MODULES} == FLOOR_OF.keys()


def circle_of_rooms() -> list[str]:
    edges = {room: set() for room in FLOOR_OF}
    for path in MODULES:
        here = room_of(path)
        edges[here] |= ({name.split(".")[1] for name in imported(path)} & FLOOR_OF.keys()) - {here}
    return circle(edges)


def test_no_file_is_in_a_circle() -> None:
    names = {module_name(path): path for path in MODULES}
    edges = {
        name: {resolved for target in imported(path) if (resolved := resolve(target, names))} - {name}
        for name, path in names.items()
    }
    # A package's `__init__` names its parts, which do not name it.
    assert not circle(edges), " -> ".join(circle(edges))


def module_name(path: Path) -> str:
    parts = ("lowrise", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def resolve(target: str, names: dict[str, Path]) -> str | None:
    return target if target in names else None


def circle(edges: dict[str, set[str]]) -> list[str]:
    """The nodes of one circle, in its order; empty where there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for other in sorted(edges[node]):
            found = visit(other, [*path, node])
            if found:
                return found
        done.add(node)
        return []

    for node in sorted(edges):
        found = visit(node, [])
        if found:
            return found
    return []
