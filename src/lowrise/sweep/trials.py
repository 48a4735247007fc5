"""The trials of a sweep: which there are, how each ended, which is the best."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lowrise.compare.outcomes import Outcome
from lowrise.compare.stored import write_stored
from lowrise.files import is_known, read_json
from lowrise.sweep.space import Dimension, Settings

TrialKey = tuple[int, int]  # number of the trial, seed

NEAR_END = 0.05  # share of a range from whose ends a best value is called an edge


@dataclass(frozen=True)
class Trial:
    """One point of the space. `status`: completed, diverged, failed, waiting, or refused (no run can have
    these settings; `error` says why). `value` is the mean of the goal over the seeds.
    """

    number: int
    settings: Settings
    status: str = "waiting"
    value: float | None = None
    values: tuple[float, ...] = ()
    error: str = ""
    runs: tuple[str, ...] = ()
    summary: dict[str, Any] = field(default_factory=dict)


def judged(trial: Trial, seeds: Sequence[int], outcomes: Mapping[TrialKey, Outcome], goal: str) -> Trial:
    """The trial with what its runs say so far."""
    if trial.status == "refused":
        return trial
    found = [outcomes[(trial.number, seed)] for seed in seeds if (trial.number, seed) in outcomes]
    values = tuple(
        float(v) for one in found if is_known(v := one.summary.get(goal)) and one.status == "completed"
    )
    for status in ("failed", "diverged"):
        bad = [one for one in found if one.status == status]
        if bad:
            return replace(trial, status=status, values=values, error=bad[0].error, summary=bad[0].summary)
    if len(values) < len(seeds):
        return replace(trial, status="waiting", values=values)
    mean = statistics.fmean(values)
    return replace(trial, status="completed", value=mean, values=values, summary=found[0].summary)


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The completed trial with the lowest value; of equal ones the first."""
    completed = [trial for trial in trials if trial.value is not None]
    return min(completed, key=lambda trial: (trial.value, trial.number)) if completed else None


def edges(space: Sequence[Dimension], trials: Sequence[Trial]) -> list[str]:
    """In words, each numeric key whose best value lies at an end of what was tried: of a list the last value
    that ran, of a range its last twentieth.
    """
    best = best_of(trials)
    if best is None:
        return []
    found = []
    for dimension in space:
        ends, value = _ends(dimension, trials), best.settings[dimension.key]
        if ends is None:
            continue
        share = _share(value, *ends, log=dimension.log)
        reach = NEAR_END if dimension.is_range else 0.0
        found += [f"{dimension.key} (lower end)"] if share <= reach else []
        found += [f"{dimension.key} (upper end)"] if share >= 1 - reach else []
    return found


def _ends(dimension: Dimension, trials: Sequence[Trial]) -> tuple[float, float] | None:
    """Of a range its ends; of numbers the least and the largest with a trial that ran, diverged ones too."""
    if dimension.is_range:
        return dimension.ends()
    ran = [t.settings[dimension.key] for t in trials if t.status in ("completed", "diverged")]
    if dimension.ends() is None or len(set(ran)) < 2:
        return None
    return min(ran), max(ran)


def _share(value: float, low: float, high: float, *, log: bool) -> float:
    """Where a value lies between two others, from 0 to 1."""
    if log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


class Record:
    """The trials of a search that depends on results, in a file, in the order in which they were drawn."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._path, self._identity = path, json.loads(json.dumps(identity, default=str))

    def read(self) -> list[Settings]:
        """The settings so far. Those of another space or seed are put aside first, as `trials-1.json`, ..."""
        try:
            document = read_json(self._path)
        except FileNotFoundError:
            return []
        except (OSError, ValueError):
            document = {}
        if isinstance(document, dict) and document.get("search") == self._identity:
            trials = document.get("trials")
            if isinstance(trials, list) and all(isinstance(one, dict) for one in trials):
                return trials
        number = 1 + len(list(self._path.parent.glob("trials-*.json")))
        self._path.replace(self._path.with_name(f"trials-{number}.json"))
        return []

    def write(self, trials: Sequence[Settings]) -> None:
        document = {"search": self._identity, "trials": list(trials)}
        write_stored(self._path, json.dumps(document, indent=1))
