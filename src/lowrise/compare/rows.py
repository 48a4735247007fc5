"""What a comparison's table holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lowrise.compare.published import Published
from lowrise.compare.rules import Difference
from lowrise.compare.statistics import Statistic


@dataclass(frozen=True)
class Row:
    """One recipe of the table. Costs are medians over the runs at the chosen learning rate."""

    label: str
    method: str
    best: dict[str, Any] | None
    val_loss: Statistic
    val_perplexity: Statistic
    val_bits_per_byte: Statistic
    costs: dict[str, float | None]
    completed: int
    diverged: int
    failed: int
    waiting: int
    lost_seeds: int
    losses: dict[int, float]
    """Seed -> validation loss of the completed runs at the chosen point."""
    difference: Difference
    ratios: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """The whole result: rows in the order of the recipes, every run, and what a reader must know."""

    budget: str
    rows: tuple[Row, ...]
    runs: tuple[dict[str, Any], ...]
    settings: dict[str, dict[str, Any]]
    notes: tuple[str, ...]
    rules: dict[str, str]
    about: dict[str, dict[str, str]]
    """What was compared (model, text, batch, ...) -> recipe -> in words."""
    power: tuple[str, ...]
    """What these seeds can see, a sentence for each comparison."""
    published: Published
