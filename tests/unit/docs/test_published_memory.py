"""The table of published estimates in docs/commands/plan.md: what is counted is counted again."""

from __future__ import annotations

import re
import tomllib

import pytest
from doc_pages import PAGES

from lowrise.config import from_dict
from lowrise.runs.plan import plan_run
from lowrise.runs.recipes import recipe

SIZES = ("60m", "130m", "350m", "1b")
ROWS = re.findall(
    r"^\| `([a-z-]+)`, (\w+) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|(.*)\|$",
    PAGES["docs/commands/plan.md"].read_text(encoding="utf-8"),
    flags=re.MULTILINE,
)
CELL = re.compile(r"(\*\*)?([0-9.]+) / ([0-9.]+)(\*\*)?")


def counted(method: str, size: str) -> float:
    """GB of weights and state in bfloat16: float32 state has 4 bytes an element."""
    config = from_dict(tomllib.loads(recipe(method, size)))
    plan = plan_run(config, config.data.vocab_size)
    return 2 * (plan.params_total + plan.state_bytes / 4) / 1e9


def test_the_table_is_found() -> None:
    assert len(ROWS) == 10


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_what_is_counted_is_what_stands_there(row: tuple[str, ...]) -> None:
    method, _, *cells, why = row
    differs = False
    for size, cell in zip(SIZES, cells, strict=True):
        bold, published, ours, _ = CELL.fullmatch(cell).groups()
        assert float(ours) == pytest.approx(counted(method, size), abs=5.1e-4), size
        apart = abs(float(published) / counted(method, size) - 1) > 0.05
        assert bool(bold) == apart, f"{size}: bold marks differences above 5%"
        differs |= apart
    assert not differs or why.strip()


@pytest.mark.parametrize(("size", "millions"), [("60m", 43), ("130m", 94), ("350m", 185), ("1b", 609)])
def test_published_parameters_of_factored_models(size: str, millions: int) -> None:
    for method in ("lowrank", "cola", "loro"):
        config = from_dict(tomllib.loads(recipe(method, size)))
        assert round(plan_run(config, config.data.vocab_size).params_total / 1e6) == millions
