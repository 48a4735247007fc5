"""The options of `lowrise sweep`; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

Goal = Literal["val_loss", "val_bits_per_byte"]


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Try values of any keys of a recipe, and write the best recipe out."""

    recipe: Positional[str]
    """Recipe file (TOML), or the folder of a run."""
    vary: tuple[str, ...]
    """A key with its values, `optimizer.lr=0.01,0.02,0.04`, or its range, `layer.rank=8..64` (integers),
    `other.lr=1e-4..1e-2:log`; a range in a grid has 5 points unless it says how many,
    `other.lr=1e-4..1e-2:log:3`."""
    out: str
    """Directory of the sweep. The same directory continues it."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """grid: every combination. random: independent draws. optuna: draws that follow the results (TPE)."""
    trials: int = 20
    """How many draws; a grid has its own number. A larger number later adds to those that are there."""
    search_seed: int = 0
    """Seed of the draws."""
    seeds: int = 1
    """Runs of each trial, with the recipe's seed and those that follow; their mean counts."""
    budget: str | None = None
    """Length of every run, `tokens=2M` or `flops=1e15`; none: the recipe's."""
    goal: Goal = "val_loss"
    """What is made small: val_bits_per_byte where the vocabulary varies."""
    workers: int | None = None
    """Runs at once, each on one thread. Default: one a core, or one a GPU."""
    set: tuple[str, ...] = ()
    """Settings for every run, as key.sub=value."""
    trust: bool = False
    """Read the files that a run of somebody else's, given as the recipe, names in its config.toml."""
