"""docs/faults.md: every kind once, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from doc_pages import PAGES, ROOT

TEXT = PAGES["docs/faults.md"].read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in TEXT.splitlines()
    if line.startswith("| ") and "::" in line
]
NAMED = sorted(set(re.findall(r"`(tests/[^`]+)`", TEXT)))


@cache
def functions_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("named", NAMED)
def test_the_named_test_exists(named: str) -> None:
    path, _, name = named.partition("::")
    assert (ROOT / path).is_file(), path
    assert not name or name in functions_in(ROOT / path), named


def test_every_kind_has_a_row_and_every_row_a_test() -> None:
    kinds = [row[0] for row in ROWS]
    assert [kind for kind in kinds if re.fullmatch(r"K\d+", kind)] == [f"K{i}" for i in range(1, 39)]
    assert len(kinds) == len(set(kinds))
    assert len(kinds) > 38 + 18, "the main job, stopping, files and numbers have 18 kinds and more"
    for row in ROWS:
        assert len(row) == 4, row
        assert all(row), row
        assert re.fullmatch(r"(`tests/[^`]+::test_\w+`(, )?)+", row[3]), row
