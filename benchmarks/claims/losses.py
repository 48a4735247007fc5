"""Claims about losses, from tables of `lowrise compare`: runs, their difference, and its 95% interval."""

from __future__ import annotations

import json

from claim import Measured, Values, Verdict
from common import RESULTS

from lowrise.compare.statistics import Statistic, paired, welch

TINY = "tiny: width 128, 4 layers, English Wikipedia, 0.8 M tokens, 3 seeds"
SEEN = "The runs were there, with their intervals, before this gate was written: it reads them again."


def seeds_of(table: str, label: str) -> dict[int, float]:
    """Seed -> validation loss of a recipe at its chosen rate; `table` is a JSON of results/."""
    record = json.loads((RESULTS / f"{table}.json").read_text(encoding="utf-8"))
    found = {
        run["seed"]: run["val_loss"]
        for run in record["runs"]
        if run["recipe"] == label and run["chosen"] and run["status"] == "completed"
    }
    if len(found) < 2:
        raise SystemExit(f"{table}.json has {len(found)} finished runs of {label} at its chosen rate.")
    return found


def at_edge(table: str, label: str) -> bool:
    """Whether the chosen rate is the last one of its grid, so that a better one may lie beyond."""
    record = json.loads((RESULTS / f"{table}.json").read_text(encoding="utf-8"))
    return bool(next(row["best"]["edges"] for row in record["rows"] if row["label"] == label))


def difference(one: tuple[str, str], other: tuple[str, str], *, by_seed: bool = False) -> Measured:
    """one - other, each (table, recipe), in nats; `by_seed` pairs runs that read the same batches."""
    runs = [seeds_of(*one), seeds_of(*other)]
    sides = [Statistic.of(list(losses.values())) for losses in runs]
    interval = paired(*runs) if by_seed else welch(*sides)
    rows = [
        (label, f"{side.mean:.3f} ± {side.sd:.3f}", str(side.n), f"{table}.json")
        for (table, label), side in zip((one, other), sides, strict=True)
    ]
    kind = "paired by seed" if by_seed else "Welch"
    shown = f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
    rows.append(("difference", shown, "", f"95%, {kind}"))
    values = {
        "one": round(sides[0].mean or 0.0, 3),
        "other": round(sides[1].mean or 0.0, 3),
        "mean": round(interval.mean, 3),
        "low": round(interval.low, 3),
        "high": round(interval.high, 3),
        "difference": shown,
        "edge": at_edge(*one) or at_edge(*other),
    }
    return Measured(("recipe", "validation loss, nats", "seeds", "runs"), rows, values)


def lower_is_claimed(values: Values) -> Verdict:
    """The claim is that the first is lower: the interval must be below zero, or above it to refute.

    Nothing is decided where a chosen rate lies at an edge of its grid.
    """
    if values["edge"]:
        return "undecided"
    if values["high"] < 0:
        return "holds"
    return "fails" if values["low"] > 0 else "undecided"
