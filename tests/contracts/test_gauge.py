"""A M, B M^-T is the same weight as A, B: what each optimizer of factors makes of it, for an invertible M."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

from lowrise.optim import OPTIMIZERS

DOCS = Path(__file__).parents[2] / "docs"
GAUGE = runpy.run_path(str(DOCS / "make_gauge.py"))
RULES, EXACT = GAUGE["RULES"], GAUGE["EXACT"]
PROMISES = [pytest.param(rule, id=rule.title) for rule in RULES if rule.promise is not None]


def cells(page: str) -> list[list[str]]:
    """The rows of the page's table, without its head."""
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


@pytest.fixture(scope="module")
def made() -> list[list[str]]:
    return GAUGE["table"]()


@pytest.fixture(scope="module")
def committed() -> str:
    return (DOCS / "methods" / "gauge.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("rule", PROMISES)
def test_who_promises_it_follows_the_same_weight_in_every_gauge(rule) -> None:
    for name, gauge in GAUGE["gauges"]().items():
        assert GAUGE["parting"](rule, gauge) <= rule.promise, name


def test_the_gauge_is_ill_conditioned_and_the_weights_move() -> None:
    gauge = GAUGE["gauges"]()["ill-conditioned"]
    assert float(torch.linalg.cond(gauge)) == pytest.approx(GAUGE["CONDITION"])
    for rule in RULES:
        W = GAUGE["trajectory"](rule)
        assert float(torch.linalg.matrix_norm(W[-1] - W[0]) / torch.linalg.matrix_norm(W[0])) > 0.1, (
            rule.title
        )


def test_every_optimizer_of_factors_has_a_row() -> None:
    moving = {name for name, kind in OPTIMIZERS.items() if "factors" in kind.roles}
    assert {rule.optimizer for rule in RULES} == moving
    promised = {rule.optimizer for rule in RULES if rule.promise is not None}
    assert promised == {"loramuon", "loro"}


def test_the_committed_table_is_what_the_script_writes(made, committed) -> None:
    rows = cells(committed)
    assert [row[0] for row in rows] == [row[0] for row in made], "run python docs/make_gauge.py"
    for old, new in zip(rows, made, strict=True):
        for then, now in zip(old[1:], new[1:], strict=True):
            if re.match(r"\d", then) and re.match(r"\d", now):
                assert float(now) == pytest.approx(float(then), rel=0.1), old[0]  # two digits, and rounding
            else:
                assert now == then, old[0]


def test_the_rest_of_the_page_is_what_the_script_writes(committed) -> None:
    assert committed == GAUGE["page"](cells(committed)), "run python docs/make_gauge.py"
