"""Spikes of the training loss, and what else was other then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lowrise.files import is_known
from lowrise.runs.history import Run

WINDOW = 20  # logged losses before one that say what is usual
DEVIATIONS = 8.0  # of the usual spread
SMALLEST = 0.02  # share of the usual loss below which nothing is called a spike
JUMP = 3.0  # times the usual gradient norm


@dataclass(frozen=True)
class Spike:
    """The highest loss of a rise above what was usual before."""

    step: int
    loss: float
    usual: float
    """Median of the losses before."""
    changed: str
    """What the log has of that moment; empty: nothing unusual."""


def spikes_of(run: Run) -> list[Spike]:
    """Steps whose loss is above the median of the `WINDOW` logged before by `DEVIATIONS` times their spread
    (1.4826 times the median distance from the median) and by a share `SMALLEST`; of neighbours the highest.
    """
    rows = [row for row in run.metrics if is_known(row.get("loss"))]
    losses = np.array([row["loss"] for row in rows], dtype=np.float64)
    found: list[tuple[int, float]] = []  # place, what was usual
    for i in range(WINDOW // 2, len(rows)):
        before = losses[max(0, i - WINDOW) : i]
        usual = float(np.median(before))
        spread = 1.4826 * float(np.median(np.abs(before - usual)))
        if losses[i] <= usual + max(DEVIATIONS * spread, SMALLEST * abs(usual)):
            continue
        if found and i - found[-1][0] <= WINDOW // 4:
            if losses[i] > losses[found[-1][0]]:
                found[-1] = i, found[-1][1]
        else:
            found.append((i, usual))
    starts = _starts(run)
    return [
        Spike(rows[i]["step"], float(losses[i]), usual, "; ".join(_changes(rows, i, starts)))
        for i, usual in found
    ]


def _changes(rows: list[dict[str, Any]], i: int, starts: dict[int, str]) -> list[str]:
    row, previous = rows[i], rows[i - 1]
    changes = []
    norms = [r["grad_norm"] for r in rows[max(0, i - WINDOW) : i] if is_known(r.get("grad_norm"))]
    norm = row.get("grad_norm")
    if is_known(norm) and norms and norm > JUMP * float(np.median(norms)):
        changes.append(f"gradient norm {norm:.3g}, {norm / float(np.median(norms)):.1f} times the usual")
    skipped = _rise(row, previous, "skipped")
    if skipped:
        changes.append(f"{skipped:.0f} update(s) skipped")
    units = _rise(row, previous, "skipped_units")
    if units:
        changes.append(f"{units:.0f} matrices left alone")
    lr, before = row.get("lr"), previous.get("lr")
    if is_known(lr) and is_known(before) and before > 0 and not 0.67 < lr / before < 1.5:
        changes.append(f"learning rate {before:.3g} -> {lr:.3g}")
    changed = [
        name
        for name, values in _matrices(row).items()
        if _rank(values) != _rank(_matrices(_last_measured(rows, i)).get(name, values))
    ]
    if changed:
        changes.append(f"{len(changed)} ranks changed")
    changes += [what for step, what in starts.items() if previous["step"] <= step < row["step"]]
    return changes


def _rise(row: dict[str, Any], previous: dict[str, Any], key: str) -> float:
    now, then = row.get(key), previous.get(key)
    return now - then if is_known(now) and is_known(then) else 0.0


def _matrices(row: dict[str, Any]) -> dict[str, Any]:
    found = row.get("matrices")
    return found if isinstance(found, dict) else {}


def _rank(values: Any) -> Any:
    return values.get("rank") if isinstance(values, dict) else None


def _last_measured(rows: list[dict[str, Any]], i: int) -> dict[str, Any]:
    return next((row for row in reversed(rows[:i]) if _matrices(row)), {})


def _starts(run: Run) -> dict[int, str]:
    """Step -> what is told of a start of the run there, other than the first."""
    history = run.environment.get("history")
    told = {}
    for start in history[1:] if isinstance(history, list) else []:
        if isinstance(start, dict) and isinstance(start.get("step"), int):
            changed = start.get("changed")
            keys = ", ".join(changed) if isinstance(changed, dict) and changed else ""
            told[start["step"]] = f"continued{f' with other {keys}' if keys else ''}"
    return told
