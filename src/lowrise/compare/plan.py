"""The plan of a comparison: recipes, budget, seeds and rules, all fixed before the first result.

The search itself, which runs follow from which results, is in `lowrise.compare.tuning`.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from tyro.conf import Positional

from lowrise.errors import UsageError
from lowrise.files import is_known
from lowrise.report.formatting import si

# Where a recipe keeps what a comparison sets.
STEPS_KEY = "train.steps"
SEED_KEY = "seed"
LR_KEY = "optimizer.lr"
OTHER_LR_KEY = "other.lr"
_OWNED = {STEPS_KEY: "--budget", SEED_KEY: "--seeds and --first-seed"}

_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
_EXAMPLE = "Write --budget tokens=2M or --budget flops=1e15."

RULES = {
    "selection": "The learning rate of a recipe is the grid point with the lowest final validation loss; "
    "each point is run once, with the first seed, at the full budget. Diverged and failed runs cannot be "
    "chosen. The same factors apply to every recipe.",
    "edge": "A chosen learning rate is marked as an edge where no run of its grid beyond it completed or "
    "diverged: a better one may lie outside.",
    "statistics": "Validation loss is the mean over the seeds at the chosen learning rate, with the sample "
    "standard deviation. The seed that chose the learning rate is one of them, so a mean is slightly "
    "optimistic, the more so the larger the grid.",
    "significance": "Two recipes differ if the 95% Welch interval of the difference of their mean validation "
    "losses (standard error sqrt(s1^2/n1 + s2^2/n2), Student t with Welch-Satterthwaite degrees of freedom) "
    "leaves out zero. With fewer than two completed seeds on either side, or a seed that diverged or failed, "
    "it is left undecided.",
}


class Config(Protocol):
    """What a comparison needs of a resolved recipe."""

    @property
    def hash(self) -> str: ...

    def to_dict(self) -> dict[str, Any]: ...


class RunPlan(Protocol):
    """What a comparison needs of the planner: tokens of one optimizer step and floating-point operations."""

    @property
    def tokens_per_step(self) -> int: ...

    @property
    def flops_per_token(self) -> float: ...

    @property
    def optimizer_flops_per_step(self) -> float: ...


LoadRecipe = Callable[[str, dict[str, Any]], Config]
PlanRun = Callable[[Any], RunPlan]


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What `lowrise compare` was asked to do."""

    recipes: Positional[tuple[str, ...]]
    """Recipe files (TOML). The first one is what the others are measured against."""
    budget: str
    """What every run may use: `tokens=2M` or `flops=1e15`. Suffixes k, M, G (or B), T."""
    out: str
    """Directory of the comparison. The same directory continues it, and may hold tables at several budgets.
    """
    seeds: int = 3
    """Runs at the chosen learning rate, each with its own seed."""
    first_seed: int = 0
    """The seeds are first_seed, first_seed + 1, ..."""
    lr_factors: str = "0.5,1,2"
    """Learning rates to try, as factors of each recipe's optimizer.lr."""
    other_lr_factors: str = "1"
    """The same for other.lr, the learning rate of what is not a matrix; every pair of factors is tried."""
    max_extensions: int = 0
    """How many times a grid may grow by one factor when the best learning rate lies at its end."""
    workers: int | None = None
    """Runs at once, each on one thread. Default: one a core, or one a GPU."""
    set: tuple[str, ...] = ()
    """Settings for every recipe, as key.sub=value."""
    trust: bool = False
    """Read the files that a run of somebody else's, given as a recipe, names in its config.toml."""


@dataclass(frozen=True)
class Budget:
    """An equal allowance for every run, in tokens or in training FLOPs (model and optimizer)."""

    unit: Literal["tokens", "flops"]
    amount: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """`tokens=2M` or `flops=1e15`. Raises `UsageError` with the remedy for anything else."""
        unit, _, amount_text = text.partition("=")
        if unit in ("bytes", "seconds"):
            raise UsageError(
                f"The budget {text!r} is not offered by this version, only tokens and flops. {_EXAMPLE}"
            )
        if unit not in ("tokens", "flops"):
            raise UsageError(f"The budget {text!r} has no known unit before '='. {_EXAMPLE}")
        amount = parse_amount(amount_text)
        if amount is None or amount <= 0:
            raise UsageError(f"The budget {text!r} needs a positive number after '='. {_EXAMPLE}")
        return cls("tokens" if unit == "tokens" else "flops", amount)

    def steps(self, run_plan: RunPlan) -> int:
        """The first number of steps that reaches the budget."""
        per_step = run_plan.tokens_per_step if self.unit == "tokens" else step_flops(run_plan)
        return max(1, math.ceil(self.amount / per_step - 1e-9))  # 1e-9: 2e6 / 0.1e6 is not 21 steps

    @property
    def name(self) -> str:
        """For people and file names: `tokens-2M`, `flops-1e15`."""
        if self.unit == "flops":
            return f"flops-{self.amount:g}".replace("+", "")
        return f"tokens-{self.amount:g}" if self.amount < 1e6 else f"tokens-{self.amount / 1e6:.12g}M"

    def __str__(self) -> str:
        return (
            f"{si(self.amount)} tokens"
            if self.unit == "tokens"
            else f"{self.amount:g} FLOPs".replace("e+", "e")
        )


@dataclass(frozen=True, order=True)
class RunKey:
    """One run of a comparison; everything else about it follows from the plan."""

    recipe: str
    lr_factor: float
    other_lr_factor: float
    seed: int


@dataclass(frozen=True)
class Recipe:
    """One recipe at the comparison's budget. `config` is its resolved dictionary before learning rate and
    seed are set.
    """

    label: str
    path: str
    lr: float
    other_lr: float | None
    steps: int
    tokens_per_step: int
    flops_per_step: float
    config: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Plan:
    """All that decides which runs there are."""

    budget: Budget
    recipes: tuple[Recipe, ...]
    seeds: tuple[int, ...]
    lr_factors: tuple[float, ...]
    other_lr_factors: tuple[float, ...] = (1.0,)
    max_extensions: int = 0
    overrides: tuple[tuple[str, Any], ...] = ()

    def recipe(self, label: str) -> Recipe:
        return next(recipe for recipe in self.recipes if recipe.label == label)


@dataclass(frozen=True)
class RunSpec:
    """One run made concrete: the name of its directory, and the settings that make it from its recipe."""

    key: RunKey
    name: str
    recipe_path: str
    overrides: dict[str, Any]
    config_hash: str
    steps: int
    flops: float


def step_flops(run_plan: RunPlan) -> float:
    """Training FLOPs of one optimizer step: forward and backward of its tokens, and the update."""
    return run_plan.tokens_per_step * run_plan.flops_per_token + run_plan.optimizer_flops_per_step


def parse_amount(text: str) -> float | None:
    """`"2M"` -> 2e6, `"1e15"` -> 1e15; None for what is no finite number."""
    text = text.strip().replace("_", "")
    scale = _SUFFIXES.get(text[-1:].lower() if text[-1:].isalpha() else "")
    try:
        number = float(text[:-1] if text[-1:].isalpha() else text)
    except ValueError:
        return None
    return number * scale if scale is not None and math.isfinite(number) else None


def parse_factors(text: str, option: str) -> tuple[float, ...]:
    """`"0.5,1,2"` -> (0.5, 1.0, 2.0), ascending, each once. Raises `UsageError` for anything but
    positive numbers.
    """
    try:
        factors = sorted({float(part) for part in text.split(",")})
    except ValueError:
        factors = []
    if not factors or not all(math.isfinite(factor) and factor > 0 for factor in factors):
        raise UsageError(
            f"{option} {text!r} is not a list of positive numbers. Write for example {option} 0.5,1,2."
        )
    return tuple(factors)


def parse_settings(settings: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """`("train.steps=3", "data.corpus=wiki")` -> pairs with TOML values; what is no TOML value is a string.

    Raises `UsageError` where there is no `=`, and for the keys that the comparison itself decides.
    """
    pairs: list[tuple[str, Any]] = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {setting!r} has no key before an '='. Write --set key.sub=value.")
        if key in _OWNED:
            raise UsageError(
                f"--set {key} would break the comparison, which decides it itself. Use {_OWNED[key]}."
            )
        if key in dict(pairs):
            raise UsageError(f"--set {key} is given twice: give it once.")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        pairs.append((key, value))
    return tuple(pairs)


def build_plan(config: CompareConfig, load_recipe: LoadRecipe, plan_run: PlanRun) -> Plan:
    """Check the request, resolve every recipe, and turn the budget into steps. Raises `UsageError`."""
    if not config.recipes:
        raise UsageError("There is nothing to compare. Name at least one recipe (a TOML file).")
    for option, value, least in (
        ("--seeds", config.seeds, 1),
        ("--max-extensions", config.max_extensions, 0),
    ):
        if value < least:
            raise UsageError(f"{option} {value} is too small. It must be at least {least}.")
    if config.workers is not None and config.workers < 1:
        raise UsageError(f"--workers {config.workers} runs nothing. It must be at least 1.")
    budget = Budget.parse(config.budget)
    lr_factors = parse_factors(config.lr_factors, "--lr-factors")
    other_lr_factors = parse_factors(config.other_lr_factors, "--other-lr-factors")
    overrides = parse_settings(config.set)
    labels = unique_labels(config.recipes)
    recipes = []
    for label, path in zip(labels, config.recipes, strict=True):
        loaded = load_recipe(path, dict(overrides))
        run_plan = plan_run(loaded)
        tree = loaded.to_dict()
        lr, other_lr = lookup(tree, LR_KEY), lookup(tree, OTHER_LR_KEY)
        if not is_known(lr) or lr <= 0:
            raise UsageError(
                f"{path} has no positive {LR_KEY} (it is {lr!r}), which the learning rates are factors of."
            )
        if other_lr_factors != (1.0,) and not (is_known(other_lr) and other_lr > 0):
            raise UsageError(
                f"{path} has no positive {OTHER_LR_KEY}, which --other-lr-factors needs. Set it there."
            )
        recipes.append(
            Recipe(
                label,
                path,
                float(lr),
                float(other_lr) if is_known(other_lr) else None,
                budget.steps(run_plan),
                run_plan.tokens_per_step,
                step_flops(run_plan),
                tree,
            )
        )
    seeds = tuple(range(config.first_seed, config.first_seed + config.seeds))
    return Plan(budget, tuple(recipes), seeds, lr_factors, other_lr_factors, config.max_extensions, overrides)


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


def resolve(plan: Plan, key: RunKey, load_recipe: LoadRecipe) -> RunSpec:
    """Name, settings and hash of one run. The hash makes two tables share a run exactly when it is the same
    run.
    """
    recipe = plan.recipe(key.recipe)
    overrides = dict(plan.overrides)
    overrides[STEPS_KEY] = recipe.steps
    overrides[SEED_KEY] = key.seed
    overrides[LR_KEY] = lr = scaled(recipe.lr, key.lr_factor)
    name = f"{recipe.label}-lr{lr:g}"
    if recipe.other_lr is not None and key.other_lr_factor != 1.0:
        overrides[OTHER_LR_KEY] = other = scaled(recipe.other_lr, key.other_lr_factor)
        name += f"-other{other:g}"
    config_hash = load_recipe(recipe.path, overrides).hash
    name += f"-seed{key.seed}-{config_hash[:10]}"
    flops = recipe.steps * recipe.flops_per_step
    return RunSpec(key, name, recipe.path, overrides, config_hash, recipe.steps, flops)


def scaled(base: float, factor: float) -> float:
    """`base * factor` without the last digits of binary arithmetic: 0.01 x 3 is 0.03, in names and in
    hashes.
    """
    return float(f"{base * factor:.12g}")
