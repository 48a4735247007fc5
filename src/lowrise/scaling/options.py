"""The options of `lowrise scaling run|fit|plot`; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional


@dataclass(kw_only=True)
class FitRules:
    """How points become numbers."""

    level: float = 0.9
    """Fraction of the draws within an interval."""
    draws: int = 2000
    """Bootstrap draws of every number."""
    bootstrap_seed: int = 0
    """Seed of the draws: the same points give the same intervals."""
    reference: str | None = None
    """Method that the others are measured against; none: AdamW's baseline if there is one, else the first."""
    huber: float = 1e-3
    """Residual of log loss from which the parametric fit counts deviations linearly."""


@dataclass(kw_only=True)
class SweepOptions:
    """Train sizes of each recipe at each budget of FLOPs, fit and report; the same folder continues it."""

    recipes: Positional[tuple[str, ...]]
    """Recipe files (TOML): one method each; their model is replaced by sizes of the family."""
    budgets: str
    """Training FLOPs of a run, model and optimizer, as the ledger counts them: 1e15,4e15,1.6e16,6.4e16."""
    out: str
    """Folder of the sweep. The same folder continues it."""
    sizes: int = 5
    """Sizes at each budget, chosen from the family by tokens per parameter."""
    tokens_per_parameter: float = 20.0
    """Where the sizes of a budget are centred; parameters without embedding and head."""
    spread: float = 8.0
    """Tokens per parameter of the smallest and largest size: so many times more, and less."""
    widths: tuple[int, ...] = ()
    """These widths of the family at every budget, instead of the rule."""
    lr_power: tuple[str, ...] = ()
    """Learning rate of matrices at width d: the recipe's times (its width / d) to this power. A number, or
    LABEL=NUMBER for one recipe; none: 0, the recipe's rate at every size."""
    lr_factors: str = "1"
    """Learning rates to try at every size, as factors of that; the best counts."""
    seeds: int = 1
    """Runs of every size and budget."""
    first_seed: int = 0
    """The seeds are first_seed, first_seed + 1, ..."""
    workers: int | None = None
    """Runs at once, each on one thread. Default: one a core, or one a GPU."""
    set: tuple[str, ...] = ()
    """Settings for every recipe, as key.sub=value."""
    trust: bool = False
    """Read the files that a run of somebody else's, given as a recipe, names in its config.toml."""
    plan: bool = False
    """Show the runs and their sizes, and run nothing."""


@dataclass(kw_only=True)
class FitOptions(FitRules):
    """Fit points: a table, or the folders of a sweep or of runs."""

    points: Positional[tuple[str, ...]]
    """CSV or JSON tables, folders of sweeps, folders of runs."""
    params: Literal["non_embedding", "total"] = "non_embedding"
    """Which parameters of a run count as its size."""
    out: str | None = None
    """Folder for fit.json and points.csv; none: nothing is written."""
    json: bool = False
    """Print one JSON object instead of tables."""


@dataclass(kw_only=True)
class PlotOptions(FitRules):
    """Fit points and write the report: isoFLOP curves, optima, laws, multipliers."""

    points: Positional[tuple[str, ...]]
    """CSV or JSON tables, folders of sweeps, folders of runs."""
    out: str
    """Folder for report.html, fit.json and points.csv."""
    params: Literal["non_embedding", "total"] = "non_embedding"
    """Which parameters of a run count as its size."""
