"""Verdicts as a whole, by simulation: recipes that are equal, tuned and judged as a comparison does it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lowrise.compare.budget import Budget
from lowrise.compare.plan import Plan, Recipe
from lowrise.compare.rules import Side, differences

DRAWS, SEEDS = 3000, 3


def tuned(label: str, curve: np.ndarray, generator: np.random.Generator) -> Side:
    """A grid run once with the first seed, its lowest point run with the others. Losses have spread 1."""
    first = curve + generator.standard_normal(len(curve))
    best = int(first.argmin())
    others = curve[best] + generator.standard_normal(SEEDS - 1)
    edges = ("lowest lr",) if best == 0 else ("highest lr",) if best == len(curve) - 1 else ()
    losses = dict(enumerate([float(first[best]), *map(float, others)]))
    return Side(label, losses, edges, tuned=True, lost=0, waiting=0)


def plan(**options: str) -> Plan:
    recipes = tuple(Recipe(label, label, 0.01, None, 10, 100, 1e6) for label in ("a", "b"))
    return Plan(Budget("tokens", 1e3), recipes, tuple(range(SEEDS)), (0.5, 1.0, 2.0), **options)  # type: ignore[arg-type]


def verdicts(curve: np.ndarray, better: float = 0.0, **options: str) -> list[str]:
    """Of DRAWS comparisons of a recipe whose losses are lower by `better`."""
    generator, made = np.random.default_rng(11), plan(**options)
    found = []
    for _ in range(DRAWS):
        sides = [tuned("a", curve, generator), tuned("b", curve - better, generator)]
        found.append(differences(made, sides)[1].verdict)
    return found


@pytest.mark.parametrize("test", ["welch", "paired"])
@pytest.mark.parametrize("steepness", [0.5, 3.0])
def test_equal_recipes_are_called_different_no_more_often_than_promised(test: str, steepness: float) -> None:
    found = verdicts(np.array([steepness, 0.0, steepness]), test=test)
    decided = [verdict for verdict in found if verdict != "undecided"]
    wrong = sum(verdict in ("better", "worse") for verdict in decided)
    # Four standard errors above 5%, of those that are decided.
    assert wrong / len(decided) < 0.05 + 4 * math.sqrt(0.05 * 0.95 / len(decided))
    assert len(decided) < DRAWS or steepness > 2, "a flat grid often has its lowest point at an end"


def test_a_real_difference_is_seen_and_never_the_wrong_way() -> None:
    found = verdicts(np.array([9.0, 0.0, 9.0]), better=5.0)
    # 4.1 standard errors at 3 seeds a side: Welch's test sees it 8 to 9 times in 10.
    assert 0.8 < found.count("better") / DRAWS < 0.97
    assert found.count("worse") == 0
