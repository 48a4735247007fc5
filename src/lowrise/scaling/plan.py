"""The plan of a sweep: budgets, sizes, learning rates and seeds, all fixed before the first result.

recipe x budget -> sizes of the family (shapes.py) -> steps, from the ledger's exact FLOPs
                -> learning rate by the rule -> one run each factor and seed
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lowrise.compare.budget import parse_amount, step_flops
from lowrise.compare.outcomes import RunSpec
from lowrise.compare.plan import (
    AXES,
    LoadRecipe,
    PlanRun,
    lookup,
    require_runs,
    require_seeds,
    require_workers,
    unique_labels,
)
from lowrise.compare.settings import SEED_KEY, STEPS_KEY, parse_factors, parse_settings
from lowrise.errors import UsageError
from lowrise.files import is_known
from lowrise.model.config import PRESETS
from lowrise.scaling.options import SweepOptions
from lowrise.scaling.shapes import Sized, check_choice, choose_shapes, shape_of

LR_KEY = AXES["lr"].key
LEAST_BUDGETS, LEAST_STEPS = 2, 10
_DECIDED = {
    "model.hidden_size": "--widths",
    "model.num_layers": "--widths",
    "model.intermediate_size": "--widths",
    "model.num_heads": "--widths",
    "model.preset": "--widths",
    LR_KEY: "the recipe, --lr-power and --lr-factors",
}


@dataclass(frozen=True)
class Planned:
    """One run of a sweep: what it is of, and what starts it."""

    method: str
    budget: float
    params: int
    tokens: int
    width: int
    lr: float
    seed: int
    spec: RunSpec[str]


@dataclass(frozen=True)
class SweepPlan:
    """All that decides which runs there are."""

    budgets: tuple[float, ...]
    methods: tuple[str, ...]
    rules: dict[str, Any]
    runs: tuple[Planned, ...] = field(compare=False)

    def document(self) -> dict[str, Any]:
        """For plan.json; equal documents are equal sweeps."""
        runs = [{key: value for key, value in asdict(run).items() if key != "spec"} for run in self.runs]
        for row, run in zip(runs, self.runs, strict=True):
            row |= {"name": run.spec.name, "recipe": run.spec.recipe_path, "settings": run.spec.overrides}
            row |= {"steps": run.spec.steps, "flops": run.spec.flops, "seed": run.seed}
        return {"budgets": self.budgets, "methods": self.methods, "rules": self.rules, "runs": runs}


def build_plan(options: SweepOptions, load_recipe: LoadRecipe, plan_run: PlanRun) -> SweepPlan:
    """Check the request and resolve every run. Raises `UsageError` before anything is run."""
    budgets, factors, settings = _checked(options)
    labels = unique_labels(options.recipes)
    powers = parse_powers(options.lr_power, labels)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    runs: list[Planned] = []
    for label, path in zip(labels, options.recipes, strict=True):
        base = load_recipe(path, settings)
        method = _Method(label, path, settings, base.to_dict(), load_recipe, plan_run)
        for budget in budgets:
            for size in method.sizes(budget, options):
                lr = method.lr * (method.width / size.shape.width) ** powers[label]
                runs += [method.run(budget, size, lr, factor, seed) for seed in seeds for factor in factors]
    rules = {
        "sizes": options.sizes,
        "tokens_per_parameter": options.tokens_per_parameter,
        "spread": options.spread,
        "widths": options.widths,
        "lr_power": powers,
        "lr_factors": factors,
        "seeds": tuple(seeds),
        "settings": settings,
    }
    # The cheapest first: mistakes show early, and a stopped sweep has whole budgets.
    runs.sort(key=lambda run: run.budget)
    return SweepPlan(budgets, labels, rules, tuple(runs))


def _checked(options: SweepOptions) -> tuple[tuple[float, ...], tuple[float, ...], dict[str, Any]]:
    """Budgets, learning-rate factors and settings of a request that can be right."""
    if not options.recipes:
        raise UsageError("There is nothing to sweep. Name at least one recipe (a TOML file).")
    budgets = parse_budgets(options.budgets)
    factors = parse_factors(options.lr_factors, "--lr-factors")
    require_seeds(options.first_seed, options.seeds)
    require_workers(options.workers)
    check_choice(options.sizes, options.tokens_per_parameter, options.spread, options.widths)
    sizes = len(options.widths) or options.sizes
    runs = len(options.recipes) * len(budgets) * sizes * len(factors) * options.seeds
    require_runs(runs, f"{len(budgets)} budgets of {sizes} sizes with --seeds {options.seeds}")
    settings = dict(parse_settings(options.set))
    for key in settings:
        if key in _DECIDED:
            raise UsageError(
                f"--set {key} would break the sweep, which decides it itself by {_DECIDED[key]}."
            )
    return budgets, factors, settings


def parse_budgets(text: str) -> tuple[float, ...]:
    """`"1e15,4e15"` -> (1e15, 4e15), ascending. Raises `UsageError` for fewer than two, or what is none."""
    amounts = [parse_amount(part) for part in text.split(",")]
    budgets = sorted({amount for amount in amounts if amount is not None and amount > 0})
    if len(budgets) < len(amounts) or len(budgets) < LEAST_BUDGETS:
        raise UsageError(
            f"--budgets {text!r} is not a list of at least {LEAST_BUDGETS} different positive numbers of "
            "FLOPs. Write for example --budgets 1e15,4e15,1.6e16,6.4e16."
        )
    return tuple(budgets)


def parse_powers(words: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """`("0.5", "muon=0")` -> the power of every recipe. Raises `UsageError` for an unknown label."""
    powers = dict.fromkeys(labels, 0.0)
    own: dict[str, float] = {}
    for word in words:
        label, equals, text = word.rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not is_known(value):
            raise UsageError(f"--lr-power {word!r} is no number: write 0.5, or LABEL=0.5 for one recipe.")
        if equals and label not in powers:
            raise UsageError(f"--lr-power {word!r}: there is no recipe {label!r}, only {', '.join(labels)}.")
        if equals:
            own[label] = value
        else:
            powers = dict.fromkeys(labels, value)
    return powers | own


class _Method:
    """One recipe of a sweep, with the costs of its sizes."""

    def __init__(
        self,
        label: str,
        path: str,
        settings: dict[str, Any],
        tree: dict[str, Any],
        load_recipe: LoadRecipe,
        plan_run: PlanRun,
    ) -> None:
        self._label, self._path, self._settings = label, path, settings
        self._load, self._plan = load_recipe, plan_run
        lr, rank = lookup(tree, LR_KEY), lookup(tree, "layer.rank")
        if not is_known(lr) or lr <= 0:
            raise UsageError(f"{path} has no positive {LR_KEY} (it is {lr!r}), which the rule starts from.")
        if isinstance(rank, int) or (
            isinstance(rank, dict) and any(isinstance(r, int) for r in rank.values())
        ):
            raise UsageError(
                f"{path} has layer.rank = {rank}, one rank for every size: give a fraction of the width, for "
                "example --set layer.rank=0.25."
            )
        self.lr = float(lr)
        self.width = int(lookup(tree, "model.hidden_size") or PRESETS[tree["model"]["preset"]]["hidden_size"])
        self.sized = functools.cache(self._sized)

    def _sized(self, width: int) -> Sized:
        shape = shape_of(width)
        planned: Any = self._plan(self._load(self._path, self._settings | shape.settings))
        return Sized(shape, planned.params_non_embedding, planned.tokens_per_step, step_flops(planned))

    def sizes(self, budget: float, options: SweepOptions) -> list[Sized]:
        if options.widths:
            sizes = [self.sized(width) for width in sorted(set(options.widths))]
        else:
            sizes = choose_shapes(
                self.sized, budget, options.sizes, options.tokens_per_parameter, options.spread
            )
        for size in sizes:
            if size.steps(budget) < LEAST_STEPS:
                raise UsageError(
                    f"{self._label}: at {budget:g} FLOPs a width of {size.shape.width} makes "
                    f"{size.steps(budget)} update(s), and at least {LEAST_STEPS} are needed: give larger "
                    "budgets, smaller sizes, or a smaller train.global_batch_size."
                )
        return sizes

    def run(self, budget: float, size: Sized, lr: float, factor: float, seed: int) -> Planned:
        steps, rate = size.steps(budget), float(f"{lr * factor:.4g}")
        settings = self._settings | size.shape.settings
        settings |= {STEPS_KEY: steps, SEED_KEY: seed, LR_KEY: rate}
        config_hash = self._load(self._path, settings).hash
        name = f"{self._label}-c{budget:g}-d{size.shape.width}-lr{rate:g}-seed{seed}-{config_hash[:10]}"
        name = name.replace("+", "")
        spec = RunSpec(name, name, self._path, settings, config_hash, steps, steps * size.flops_per_step)
        tokens = steps * size.tokens_per_step
        return Planned(self._label, budget, size.params, tokens, size.shape.width, rate, seed, spec)
