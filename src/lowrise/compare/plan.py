"""The plan of a comparison: recipes, budget, seeds and rules, all fixed before the first result.

The search itself, which runs follow from which results, is in `lowrise.compare.tuning`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from lowrise.compare.budget import Budget, RunPlan, Size, parse_budgets, step_flops
from lowrise.compare.options import CompareConfig, SizeBy
from lowrise.compare.outcomes import RunSpec
from lowrise.compare.settings import SEED_KEY, STEPS_KEY, parse_factors, parse_settings
from lowrise.compare.sizing import Sized, choose_size
from lowrise.errors import UsageError
from lowrise.files import is_known

# Where a recipe keeps what a comparison sets.
EVAL_KEY, EVAL_TOKENS_KEY = "eval.every", "eval.tokens"
# Evaluations that a curve has at least, and what those in between may read: a forward pass is a third of an
# update, so that ten of them cost about a fifth of the training, or next to nothing.
CURVE_POINTS, CURVE_SHARE, CURVE_TOKENS = 10, 0.06, 8192


@dataclass(frozen=True)
class Axis:
    """A number of the recipes that is tuned: its key, and what it is called in tables and in flags."""

    key: str
    word: str
    flag: str


AXES = {
    "lr": Axis("optimizer.lr", "lr", "--lr-factors"),
    "other_lr": Axis("other.lr", "other lr", "--other-lr-factors"),
    "warmup": Axis("schedule.warmup", "warm-up", "--warmup-factors"),
    "other_warmup": Axis("schedule.other_warmup", "other warm-up", "--other-warmup-factors"),
}
"""Every axis of the grid: the two rates, and the warm-up of each."""


class Config(Protocol):
    """What a comparison needs of a resolved recipe."""

    @property
    def hash(self) -> str: ...

    def to_dict(self) -> dict[str, Any]: ...


LoadRecipe = Callable[[str, dict[str, Any]], Config]
PlanRun = Callable[[Any], RunPlan]


@dataclass(frozen=True, order=True)
class RunKey:
    """One run of a comparison; everything else about it follows from the plan."""

    recipe: str
    lr_factor: float
    other_lr_factor: float
    seed: int
    warmup_factor: float = 1.0
    other_warmup_factor: float = 1.0

    @classmethod
    def at(cls, recipe: str, factors: Mapping[str, float], seed: int) -> RunKey:
        """With a factor for each axis."""
        return cls(recipe, seed=seed, **{f"{axis}_factor": factors[axis] for axis in AXES})

    @property
    def factors(self) -> dict[str, float]:
        return {axis: getattr(self, f"{axis}_factor") for axis in AXES}


@dataclass(frozen=True)
class Recipe:
    """One recipe at the comparison's budget. `config` is its resolved dictionary, with `settings` and before
    learning rate and seed are set.
    """

    label: str
    path: str
    lr: float
    other_lr: float | None
    steps: int
    tokens_per_step: int
    flops_per_step: float
    config: dict[str, Any] = field(default_factory=dict, compare=False)
    warmup: float = 0.0
    other_warmup: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    """What the budget of size chose, if there is one."""
    sized: Sized | None = None
    seconds_per_step: float | None = None

    def at(self, axis: str, factor: float) -> float | None:
        """The value of an axis at a factor."""
        base = getattr(self, axis)
        if base is None:
            return None
        return scaled_warmup(base, factor) if axis.endswith("warmup") else scaled(base, factor)


LARGEST_PLAN = 10_000  # runs


@dataclass(frozen=True)
class Plan:
    """All that decides which runs there are, and what is said about them."""

    budget: Budget
    recipes: tuple[Recipe, ...]
    seeds: tuple[int, ...]
    lr_factors: tuple[float, ...]
    other_lr_factors: tuple[float, ...] = (1.0,)
    max_extensions: int = 0
    overrides: tuple[tuple[str, Any], ...] = ()
    warmup_factors: tuple[float, ...] = (1.0,)
    other_warmup_factors: tuple[float, ...] = (1.0,)
    size: Size | None = None
    test: Literal["welch", "paired"] = "welch"
    correction: Literal["none", "holm"] = "none"

    def recipe(self, label: str) -> Recipe:
        return next(recipe for recipe in self.recipes if recipe.label == label)

    def factors(self, axis: str) -> tuple[float, ...]:
        return getattr(self, f"{axis}_factors")

    @property
    def grid_points(self) -> int:
        return math.prod(len(self.factors(axis)) for axis in AXES)

    @property
    def name(self) -> str:
        """Of the table's folder: `tokens-2M`, `tokens-2M-bytes-8M`."""
        return self.budget.name + (f"-{self.size.name}" if self.size else "")

    @property
    def allowance(self) -> str:
        """The budgets in words."""
        return f"{self.budget}" + (f", {self.size}" if self.size else "")


def build_plan(config: CompareConfig, load_recipe: LoadRecipe, plan_run: PlanRun) -> Plan:
    """Check the request, resolve every recipe, and turn the budget into sizes and steps. Raises `UsageError`.

    At a budget of seconds the steps are still unknown (0): `lowrise.compare.rates` measures what they take.
    """
    if not config.recipes:
        raise UsageError("There is nothing to compare. Name at least one recipe (a TOML file).")
    require_seeds(config.first_seed, config.seeds)
    if config.max_extensions < 0:
        raise UsageError(f"--max-extensions {config.max_extensions} is too small. It must be at least 0.")
    require_workers(config.workers)
    length, size = parse_budgets(config.budget)
    factors = {axis: parse_factors(getattr(config, f"{axis}_factors"), AXES[axis].flag) for axis in AXES}
    points = math.prod(map(len, factors.values()))
    require_runs(len(config.recipes) * points * config.seeds, f"--seeds {config.seeds} over the grids")
    overrides = parse_settings(config.set)
    recipes: list[Recipe] = []
    for label, path in zip(unique_labels(config.recipes), config.recipes, strict=True):
        recipe, run_plan = _size(label, path, dict(overrides), size, config.size_by, load_recipe, plan_run)
        _require_bases(recipe, factors)
        if length is None:  # sizes alone: as long as the first recipe says
            length = Budget("tokens", float(run_plan.tokens_per_step * lookup(recipe.config, STEPS_KEY)))
        recipes.append(recipe if length.unit == "seconds" else replace(recipe, steps=length.steps(run_plan)))
    assert length is not None
    return Plan(
        length,
        tuple(recipes),
        tuple(range(config.first_seed, config.first_seed + config.seeds)),
        max_extensions=config.max_extensions,
        overrides=overrides,
        size=size,
        test=config.test,
        correction=config.correction,
        **{f"{axis}_factors": found for axis, found in factors.items()},
    )


def _size(
    label: str,
    path: str,
    overrides: dict[str, Any],
    size: Size | None,
    by: SizeBy,
    load_recipe: LoadRecipe,
    plan_run: PlanRun,
) -> tuple[Recipe, RunPlan]:
    """A recipe at the budget's size, its length still unknown, and its plan."""
    loaded = load_recipe(path, dict(overrides))
    sized = None
    if size is not None:

        def plan_with(settings: dict[str, Any]) -> RunPlan:
            return plan_run(load_recipe(path, overrides | settings))

        sized = choose_size(label, loaded.to_dict(), size, by, plan_with)
        loaded = load_recipe(path, overrides | sized.settings)
    run_plan, tree = plan_run(loaded), loaded.to_dict()
    lr, other_lr = lookup(tree, AXES["lr"].key), lookup(tree, AXES["other_lr"].key)
    if not is_known(lr) or lr <= 0:
        raise UsageError(
            f"{path} has no positive {AXES['lr'].key} (it is {lr!r}), which the rates tried are factors of."
        )
    warmup, other_warmup = lookup(tree, AXES["warmup"].key), lookup(tree, AXES["other_warmup"].key)
    warmup = float(warmup) if is_known(warmup) else 0.0
    recipe = Recipe(
        label,
        path,
        float(lr),
        float(other_lr) if is_known(other_lr) else None,
        0,
        run_plan.tokens_per_step,
        step_flops(run_plan),
        tree,
        warmup,
        float(other_warmup) if is_known(other_warmup) else warmup,
        sized.settings if sized else {},
        sized,
    )
    return recipe, run_plan


def _require_bases(recipe: Recipe, factors: Mapping[str, tuple[float, ...]]) -> None:
    """Factors need something to be factors of."""
    for axis, found in factors.items():
        base = getattr(recipe, axis)
        if found != (1.0,) and not (base is not None and base > 0):
            raise UsageError(
                f"{recipe.path} has no positive {AXES[axis].key}, which {AXES[axis].flag} needs: set it."
            )


def require_workers(workers: int | None) -> None:
    """`UsageError` for fewer than one, and for more than runs."""
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers} runs nothing. It must be at least 1.")
    if workers is not None and workers > LARGEST_PLAN:
        raise UsageError(
            f"--workers {workers} are more than there can be runs, {LARGEST_PLAN:,}: give fewer."
        )


def require_runs(runs: int, what: str) -> None:
    """`UsageError` for more runs than anybody waits for: a number that was written wrongly, which would fill
    the memory before the first run."""
    if runs > LARGEST_PLAN:
        raise UsageError(
            f"{what} would be {runs:,} runs, and at most {LARGEST_PLAN:,} are planned together: give fewer."
        )


def require_seeds(first: int, count: int) -> None:
    """`UsageError` for seeds that no run can have, or none."""
    if count < 1:
        raise UsageError(f"--seeds {count} is too small. It must be at least 1.")
    if not 0 <= first < 2**63 - count:
        raise UsageError(f"--first-seed {first} cannot be: seeds are 0 to {2**63 - 1}.")


def unique_labels(paths: Sequence[str]) -> tuple[str, ...]:
    """File stems; where two are equal, with the folder before. Raises `UsageError` for one file named
    twice.
    """
    resolved = [Path(path).resolve() for path in paths]
    for i, path in enumerate(resolved):
        if path in resolved[:i]:
            raise UsageError(f"The recipe {paths[i]} is named twice. Name each recipe once.")
    stems = [path.stem for path in resolved]
    labels = [
        s if stems.count(s) == 1 else f"{p.parent.name}-{s}" for p, s in zip(resolved, stems, strict=True)
    ]
    return tuple(label if labels.count(label) == 1 else f"{label}-{i + 1}" for i, label in enumerate(labels))


def lookup(tree: Mapping[str, Any], dotted: str) -> Any:
    """The value under a dotted key, or None."""
    value: Any = tree
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def resolve(plan: Plan, key: RunKey, load_recipe: LoadRecipe) -> RunSpec[RunKey]:
    """Name, settings and hash of one run. The hash makes two tables share a run exactly when it is the same
    run.
    """
    recipe = plan.recipe(key.recipe)
    overrides = dict(plan.overrides) | recipe.settings
    overrides[STEPS_KEY] = recipe.steps
    overrides[SEED_KEY] = key.seed
    name = recipe.label
    for axis, factor in key.factors.items():
        value = recipe.at(axis, factor)
        if axis == "lr" or (factor != 1.0 and value is not None):
            overrides[AXES[axis].key] = value
            name += f"-{axis.replace('_lr', '').replace('_', '')}{value:g}"
    loaded = load_recipe(recipe.path, overrides)
    tokens = max(one.steps * one.tokens_per_step for one in plan.recipes)  # the same text for all curves
    overrides |= curve_settings(loaded.to_dict(), recipe.steps, tokens, plan.overrides)
    name += f"-seed{key.seed}-{loaded.hash[:10]}"
    flops = recipe.steps * recipe.flops_per_step
    return RunSpec(key, name, recipe.path, overrides, loaded.hash, recipe.steps, flops)


def curve_settings(
    tree: Mapping[str, Any], steps: int, tokens: int, overrides: Sequence[tuple[str, Any]]
) -> dict[str, Any]:
    """Evaluations along the way of a run that is too short for the recipe's, so that its curve has points.

    How often a run is evaluated is no part of its hash; the last evaluation always reads the whole held-out
    text. What the user has set stays.
    """
    every, enough = lookup(tree, EVAL_KEY), max(1, steps // CURVE_POINTS)
    if not is_known(every) or 0 < every <= enough or EVAL_KEY in dict(overrides):
        return {}
    settings = {EVAL_KEY: enough}
    if not lookup(tree, EVAL_TOKENS_KEY) and EVAL_TOKENS_KEY not in dict(overrides):
        settings[EVAL_TOKENS_KEY] = max(CURVE_TOKENS, int(CURVE_SHARE * tokens))
    return settings


def scaled(base: float, factor: float) -> float:
    """`base * factor` without the last digits of binary arithmetic: 0.01 x 3 is 0.03, in names and in
    hashes.
    """
    return float(f"{base * factor:.12g}")


def scaled_warmup(base: float, factor: float) -> float:
    """A warm-up times a factor, and still of its kind: a fraction of the updates (at most 0.99), or a number
    of them (at least 1).
    """
    return min(scaled(base, factor), 0.99) if base < 1 else float(max(1, round(base * factor)))
