"""The options of `lowrise compare`; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

SizeBy = Literal["auto", "rank", "width"]


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What `lowrise compare` was asked to do."""

    recipes: Positional[tuple[str, ...]]
    """Recipe files (TOML). The first one is what the others are measured against."""
    budget: tuple[str, ...]
    """What every run may use: a length (`tokens=2M`, `flops=1e15` or `seconds=600`), a size (`params=1M`,
    `bytes=8MB` of optimizer state or `inference=4MB`), or both. Suffixes k, M, G (or B), T."""
    out: str
    """Directory of the comparison. The same directory continues it, and may hold tables at several budgets.
    """
    size_by: SizeBy = "auto"
    """What a budget of size chooses: the rank, the width, or the rank where it counts (auto)."""
    seeds: int = 3
    """Runs at the chosen learning rate, each with its own seed."""
    first_seed: int = 0
    """The seeds are first_seed, first_seed + 1, ..."""
    lr_factors: str = "0.5,1,2"
    """Learning rates to try, as factors of each recipe's optimizer.lr."""
    other_lr_factors: str = "1"
    """The same for other.lr, the learning rate of what is not a matrix; every combination is tried."""
    warmup_factors: str = "1"
    """The same for schedule.warmup, which the other rate follows unless it has its own."""
    other_warmup_factors: str = "1"
    """The same for schedule.other_warmup, the warm-up of other.lr."""
    max_extensions: int = 0
    """How many times a grid may grow by one factor when the best point lies at its end."""
    test: Literal["welch", "paired"] = "welch"
    """What decides: Welch's interval, or that of the differences seed by seed. Both are shown."""
    correction: Literal["none", "holm"] = "none"
    """holm: correct for the number of comparisons with the first recipe."""
    workers: int | None = None
    """Runs at once, each on one thread. Default: one a core, or one a GPU."""
    set: tuple[str, ...] = ()
    """Settings for every recipe, as key.sub=value."""
    plan: bool = False
    """Show sizes, lengths, grids and the FLOPs of it all, and run nothing."""
    trust: bool = False
    """Read the files that a run of somebody else's, given as a recipe, names in its config.toml."""
