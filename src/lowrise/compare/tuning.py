"""Which runs a comparison needs: pure functions of the plan and of the outcomes so far.

1. Each recipe has a grid of learning rates: the plan's factors x its own `optimizer.lr` (and `other.lr`).
2. All grids are run with the first seed at the full budget. The lowest validation loss is the choice.
3. If the choice lies at an end of its grid and extensions are left, the grid grows by one factor there (with
   the ratio of the last two), and 2 repeats.
4. The other seeds are run at the chosen learning rate only.

Nothing is remembered between calls, so a second start decides exactly as the first one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lowrise.compare.plan import Plan, RunKey, scaled


@dataclass(frozen=True)
class Outcome:
    """How one run ended. `completed` has a finite validation loss; `diverged` ran and has none;
    `failed` tells nothing.
    """

    status: Literal["completed", "diverged", "failed"]
    val_loss: float | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    error: str = ""


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
    lrs, others = list(plan.lr_factors), list(plan.other_lr_factors)
    extensions = 0
    while True:
        keys = tuple(RunKey(label, lr, other, plan.seeds[0]) for lr in lrs for other in others)
        if any(key not in outcomes for key in keys):
            return Tuning(keys, False, extensions=extensions)
        best = _best(keys, outcomes)
        if best is None:
            return Tuning(keys, True, extensions=extensions)
        if extensions < plan.max_extensions and _extend(best, lrs, others):
            extensions += 1
            continue
        return Tuning(keys, True, best, _edges(best, lrs, others, outcomes), extensions)


def _best(keys: Sequence[RunKey], outcomes: Outcomes) -> RunKey | None:
    """The completed run with the lowest loss; of equal ones, the smallest learning rate."""
    completed = [(loss, key) for key in keys if (loss := outcomes[key].val_loss) is not None]
    return min(completed)[1] if completed else None


def _extend(best: RunKey, lrs: list[float], others: list[float]) -> bool:
    """Add a factor, in place, at each end of a grid where `best` lies. False where it lies inside both."""
    extended = False
    for factors, value in ((lrs, best.lr_factor), (others, best.other_lr_factor)):
        if len(factors) < 2 or factors[0] < value < factors[-1]:
            continue
        if value == factors[0]:
            factors.insert(0, scaled(factors[0], factors[0] / factors[1]))
        else:
            factors.append(scaled(factors[-1], factors[-1] / factors[-2]))
        extended = True
    return extended


def _edges(
    best: RunKey, lrs: Sequence[float], others: Sequence[float], outcomes: Outcomes
) -> tuple[str, ...]:
    """In words, each side on which no evidence lies beyond the choice; a grid of one factor was not tuned
    and has no ends.
    """
    edges = []
    for what, factors, value in (("lr", lrs, best.lr_factor), ("other lr", others, best.other_lr_factor)):
        if len(factors) < 2:
            continue

        def known(factor: float, what: str = what) -> bool:
            lr = factor if what == "lr" else best.lr_factor
            other = factor if what == "other lr" else best.other_lr_factor
            return outcomes[RunKey(best.recipe, lr, other, best.seed)].status != "failed"

        if not any(known(factor) for factor in factors if factor < value):
            edges.append(f"lowest {what}")
        if not any(known(factor) for factor in factors if factor > value):
            edges.append(f"highest {what}")
    return tuple(edges)


def chosen_runs(plan: Plan, tuning: Tuning) -> list[RunKey]:
    """The runs at the chosen learning rate, one a seed."""
    best = tuning.best
    if best is None:
        return []
    return [RunKey(best.recipe, best.lr_factor, best.other_lr_factor, seed) for seed in plan.seeds]


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
