"""What a sweep will do: the recipe, the space, how it is searched, and the run of each trial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lowrise.compare.budget import Budget, RunPlan, step_flops
from lowrise.compare.outcomes import RunSpec
from lowrise.compare.plan import (
    Config,
    LoadRecipe,
    PlanRun,
    lookup,
    require_runs,
    require_seeds,
    require_workers,
)
from lowrise.compare.settings import SEED_KEY, STEPS_KEY, parse_settings
from lowrise.errors import UsageError
from lowrise.sweep.options import SweepConfig
from lowrise.sweep.optuna_search import require_optuna
from lowrise.sweep.space import Dimension, Settings, grid_of, name_of, parse_space, random_draws
from lowrise.sweep.trials import Trial, TrialKey


@dataclass(frozen=True)
class SweepPlan:
    """All that is fixed before the first run. `trials` are all of a grid's or of random draws; none where the
    search follows the results.
    """

    recipe: str
    space: tuple[Dimension, ...]
    search: str
    total: int
    search_seed: int
    seeds: tuple[int, ...]
    goal: str
    budget: Budget | None
    overrides: dict[str, Any]
    trials: tuple[Settings, ...] = ()
    config: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def identity(self) -> dict[str, Any]:
        """What the draws of a search follow from, but for their number."""
        return {
            "recipe": self.recipe,
            "space": [str(dimension) for dimension in self.space],
            "search": self.search,
            "search_seed": self.search_seed,
            "goal": self.goal,
            "budget": None if self.budget is None else self.budget.name,
            "settings": self.overrides,
        }


def build_plan(config: SweepConfig, load_recipe: LoadRecipe) -> SweepPlan:
    """Check the request before anything runs. Raises `UsageError`."""
    if config.trials < 1:
        raise UsageError(f"--trials {config.trials} is too small. It must be at least 1.")
    if not 0 <= config.search_seed < 2**31:  # optuna's samplers take 32 bits, and it grows with the trials
        raise UsageError(f"--search-seed {config.search_seed} cannot be: it is 0 to {2**31 - 1}.")
    require_seeds(0, config.seeds)
    require_workers(config.workers)
    if config.search == "optuna":
        require_optuna()
    space = parse_space(config.vary)
    points = math.prod(len(d.grid()) for d in space) if config.search == "grid" else config.trials
    require_runs(points * config.seeds, "The space with its seeds")
    budget = Budget.parse(config.budget) if config.budget is not None else None
    if budget is not None and budget.unit == "seconds":
        raise UsageError("--budget seconds=... is for lowrise compare: give a sweep tokens or flops.")
    overrides = dict(parse_settings(config.set, owned={}))
    keys = [dimension.key for dimension in space]
    _require_free(keys, overrides, config)
    loaded = load_recipe(config.recipe, dict(overrides))
    for dimension in space:
        _require_possible(dimension, config.recipe, overrides, load_recipe)
    trials = {
        "grid": lambda: grid_of(space),
        "random": lambda: random_draws(space, config.trials, config.search_seed),
        "optuna": list,
    }[config.search]()
    tree = loaded.to_dict()
    first = lookup(tree, SEED_KEY) or 0
    return SweepPlan(
        config.recipe,
        space,
        config.search,
        len(trials) or config.trials,
        config.search_seed,
        tuple(range(first, first + config.seeds)),
        config.goal,
        budget,
        overrides,
        tuple(trials),
        tree,
    )


def _require_free(keys: Sequence[str], overrides: Mapping[str, Any], config: SweepConfig) -> None:
    """A key is varied, or set, or decided by another option: one of them."""
    for key in keys:
        if key in overrides:
            raise UsageError(f"{key} is both varied and set: leave out --vary {key} or --set {key}.")
    if config.budget is not None and STEPS_KEY in (*keys, *overrides):
        raise UsageError(f"{STEPS_KEY} and --budget both say how long a run is: leave one of them out.")
    if config.seeds > 1 and SEED_KEY in keys:
        raise UsageError(
            f"--vary {SEED_KEY} and --seeds {config.seeds} both give seeds: leave one of them out."
        )


def _require_possible(
    dimension: Dimension, recipe: str, overrides: Mapping[str, Any], load_recipe: LoadRecipe
) -> None:
    """Raise the `UsageError` of an end of a range, and the first of listed values where every one has one: a
    misspelled key, above all. Listed values that cannot be are trials that are refused."""
    errors = []
    values = dimension.ends() if dimension.is_range else dimension.values
    for value in values or ():
        try:
            load_recipe(recipe, {**overrides, dimension.key: value})
        except UsageError as error:
            errors.append(error)
            if dimension.is_range:
                raise UsageError(f"--vary {dimension}: {error}") from None
        else:
            if not dimension.is_range:
                return
    if errors:
        raise errors[0]


def require_ends(plan: SweepPlan, load_recipe: LoadRecipe, plan_run: PlanRun) -> None:
    """Raise `UsageError` for a range that no model has, such as ranks above its matrices. The
    text is prepared for it, as for every trial."""
    for dimension in plan.space:
        for value in (dimension.is_range and dimension.ends()) or ():
            try:
                plan_run(load_recipe(plan.recipe, {**plan.overrides, dimension.key: value}))
            except UsageError as error:
                raise UsageError(
                    f"--vary {dimension}: {error} Give a range that a run can have at both ends."
                ) from None


def specs_of(
    plan: SweepPlan, trial: Trial, load_recipe: LoadRecipe, plan_run: PlanRun
) -> list[RunSpec[TrialKey]]:
    """The runs of a trial, one a seed. Raises `UsageError` for settings that no run can have."""
    settings = plan.overrides | trial.settings
    loaded = load_recipe(plan.recipe, dict(settings))
    run_plan = plan_run(loaded)
    steps = _steps(plan, loaded, run_plan)
    if plan.budget is not None:
        settings[STEPS_KEY] = steps
    specs = []
    for seed in plan.seeds:
        own = settings if SEED_KEY in trial.settings else {**settings, SEED_KEY: seed}
        found = load_recipe(plan.recipe, dict(own)).hash
        name = f"{name_of(trial.settings)}-seed{own[SEED_KEY]}-{found[:10]}"
        flops = steps * step_flops(run_plan)
        specs.append(RunSpec((trial.number, seed), name, plan.recipe, own, found, steps, flops))
    return specs


def _steps(plan: SweepPlan, loaded: Config, run_plan: RunPlan) -> int:
    if plan.budget is not None:
        return plan.budget.steps(run_plan)
    return int(lookup(loaded.to_dict(), STEPS_KEY))
