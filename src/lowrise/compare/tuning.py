"""Which runs a comparison needs: pure functions of the plan and of the outcomes so far.

1. Each recipe has a grid: the plan's factors x its own `optimizer.lr` (and `other.lr`, and the warm-up of
   each).
2. All grids are run with the first seed at the full budget. The lowest validation loss is the choice.
3. If the choice lies at an end of its grid and extensions are left, the grid grows by one factor there (with
   the ratio of the last two), and 2 repeats.
4. The other seeds are run at the chosen learning rate only.

Nothing is remembered between calls, so a second start decides exactly as the first one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from lowrise.compare.outcomes import Outcome
from lowrise.compare.plan import AXES, Plan, RunKey, scaled

Outcomes = Mapping[RunKey, Outcome]


@dataclass(frozen=True)
class Tuning:
    """The state of one recipe's search. `best` is None while `done` is false, and where no run of the
    grid completed.
    """

    keys: tuple[RunKey, ...]
    done: bool
    best: RunKey | None = None
    edges: tuple[str, ...] = ()
    extensions: int = 0


def tune(plan: Plan, label: str, outcomes: Outcomes) -> Tuning:
    """Where the search for one recipe's learning rate stands, given the outcomes so far."""
    grid = {axis: list(plan.factors(axis)) for axis in AXES}
    extensions = 0
    while True:
        points = (dict(zip(grid, point, strict=True)) for point in product(*grid.values()))
        keys = tuple(RunKey.at(label, point, plan.seeds[0]) for point in points)
        if any(key not in outcomes for key in keys):
            return Tuning(keys, False, extensions=extensions)
        best = _best(keys, outcomes)
        if best is None:
            return Tuning(keys, True, extensions=extensions)
        if extensions < plan.max_extensions and _extend(best, grid):
            extensions += 1
            continue
        return Tuning(keys, True, best, _edges(best, grid, outcomes), extensions)


def _best(keys: Sequence[RunKey], outcomes: Outcomes) -> RunKey | None:
    """The completed run with the lowest loss; of equal ones, the smallest learning rate."""
    completed = [(loss, key) for key in keys if (loss := outcomes[key].val_loss) is not None]
    return min(completed)[1] if completed else None


def _extend(best: RunKey, grid: dict[str, list[float]]) -> bool:
    """Add a factor, in place, at each end of an axis where `best` lies. False where it lies inside all."""
    extended = False
    for axis, factors in grid.items():
        value = best.factors[axis]
        if len(factors) < 2 or factors[0] < value < factors[-1]:
            continue
        if value == factors[0]:
            factors.insert(0, scaled(factors[0], factors[0] / factors[1]))
        else:
            factors.append(scaled(factors[-1], factors[-1] / factors[-2]))
        extended = True
    return extended


def _edges(best: RunKey, grid: Mapping[str, Sequence[float]], outcomes: Outcomes) -> tuple[str, ...]:
    """In words, each side on which no evidence lies beyond the choice; an axis of one factor was not tuned
    and has no ends.
    """
    edges = []
    for axis, factors in grid.items():
        if len(factors) < 2:
            continue
        here = best.factors[axis]

        def known(factor: float, axis: str = axis) -> bool:
            key = RunKey.at(best.recipe, {**best.factors, axis: factor}, best.seed)
            return outcomes[key].status != "failed"

        if not any(known(factor) for factor in factors if factor < here):
            edges.append(f"lowest {AXES[axis].word}")
        if not any(known(factor) for factor in factors if factor > here):
            edges.append(f"highest {AXES[axis].word}")
    return tuple(edges)


def chosen_runs(plan: Plan, tuning: Tuning) -> list[RunKey]:
    """The runs at the chosen learning rate, one a seed."""
    best = tuning.best
    if best is None:
        return []
    return [RunKey.at(best.recipe, best.factors, seed) for seed in plan.seeds]


def required_runs(plan: Plan, outcomes: Outcomes) -> list[RunKey]:
    """Every run known to be needed so far, in the order to start them: all grids first, then the seeds."""
    tunings = [tune(plan, recipe.label, outcomes) for recipe in plan.recipes]
    grids = [key for tuning in tunings for key in tuning.keys]
    seeds = [key for tuning in tunings for key in chosen_runs(plan, tuning) if key.seed != plan.seeds[0]]
    return grids + seeds


def expected_runs(plan: Plan, outcomes: Outcomes) -> int:
    """How many runs there will be, if no further grid is extended and each recipe has a completed run."""
    tunings = [tune(plan, recipe.label, outcomes) for recipe in plan.recipes]
    seeds = sum(len(plan.seeds) - 1 for tuning in tunings if not tuning.done or tuning.best is not None)
    return sum(len(tuning.keys) for tuning in tunings) + seeds
