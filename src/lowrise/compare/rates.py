"""The time of a step, measured before a comparison at a budget of seconds.

1. Each recipe runs a probe of `PROBE_STEPS` steps, an ordinary run directory `runs/probe-...`, at its own
   learning rate. As many probes run at once as runs later will: a recipe's probe is repeated with other seeds
   where workers would be idle.
2. Its time is the median over the last two thirds of the steps of all its probes.
3. It is kept in `rates.json` beside the table, so that a second start plans the same number of steps.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowrise.compare.outcomes import Outcome, RunSpec
from lowrise.compare.plan import LoadRecipe, Plan, Recipe
from lowrise.compare.settings import SEED_KEY, STEPS_KEY
from lowrise.errors import LowriseError
from lowrise.files import is_known, read_json, write_whole
from lowrise.runs.history import read_run

PROBE_STEPS = 30
_QUIET = {
    "log.every": 1,
    "log.telemetry_every": 0,
    "eval.every": 0,
    "checkpoint.every": 0,
    "sample.tokens": 0,
}

RunAll = Callable[[Sequence[RunSpec[Any]]], Mapping[Any, Outcome]]


def with_steps(
    plan: Plan,
    table_dir: Path,
    runs_dir: Path,
    load_recipe: LoadRecipe,
    workers: int,
    run_all: RunAll,
) -> Plan | None:
    """The plan with the steps that its seconds allow; None where the probes were stopped.

    Raises `LowriseError` where a probe fails.
    """
    path = table_dir / "rates.json"
    rates = _read(path)
    specs = {
        recipe.label: _probes(plan, recipe, load_recipe, workers)
        for recipe in plan.recipes
        if rates.get(recipe.label, {}).get("probe") != _identity(plan, recipe, load_recipe)
    }
    outcomes = run_all([spec for probes in specs.values() for spec in probes])
    for label, probes in specs.items():
        if any(spec.key not in outcomes for spec in probes):
            return None
        rates[label] = {
            "probe": probes[0].config_hash,
            "seconds_per_step": _time_of(probes, outcomes, runs_dir),
        }
    table_dir.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(rates, indent=1) + "\n")
    recipes = []
    for recipe in plan.recipes:
        seconds = rates[recipe.label]["seconds_per_step"]
        steps = plan.budget.steps_in_time(seconds)
        recipes.append(replace(recipe, steps=steps, seconds_per_step=seconds))
    return replace(plan, recipes=tuple(recipes))


def _probes(plan: Plan, recipe: Recipe, load_recipe: LoadRecipe, workers: int) -> list[RunSpec[str]]:
    """At least one; more where the recipes are fewer than the workers."""
    copies = -(-workers // len(plan.recipes))
    probes = []
    for seed in range(plan.seeds[0], plan.seeds[0] + copies):
        overrides = _overrides(plan, recipe, seed)
        found = load_recipe(recipe.path, overrides).hash
        name = f"probe-{recipe.label}-seed{seed}-{found[:10]}"
        flops = PROBE_STEPS * recipe.flops_per_step
        probes.append(RunSpec(name, name, recipe.path, overrides, found, PROBE_STEPS, flops))
    return probes


def _overrides(plan: Plan, recipe: Recipe, seed: int) -> dict[str, Any]:
    return dict(plan.overrides) | recipe.settings | {STEPS_KEY: PROBE_STEPS, SEED_KEY: seed} | _QUIET


def _identity(plan: Plan, recipe: Recipe, load_recipe: LoadRecipe) -> str:
    return load_recipe(recipe.path, _overrides(plan, recipe, plan.seeds[0])).hash


def _time_of(probes: Sequence[RunSpec[str]], outcomes: Mapping[str, Outcome], runs_dir: Path) -> float:
    """Seconds a step. A probe that diverged has its times all the same."""
    found: list[float] = []
    for spec in probes:
        outcome = outcomes[spec.key]
        if outcome.status == "failed":
            raise LowriseError(f"The probe {spec.name} failed, so its steps have no time: {outcome.error}")
        (times,) = read_run(runs_dir / spec.name).column("step_ms")
        found += times[len(times) // 3 :]
    if not found:
        raise LowriseError(f"The probe {probes[0].name} logged no step_ms: look into its metrics.jsonl.")
    return statistics.median(found) / 1e3


def _read(path: Path) -> dict[str, Any]:
    """Rates of an earlier start, those that are whole."""
    try:
        rates = read_json(path)
    except (OSError, ValueError):
        return {}
    if not isinstance(rates, dict):
        return {}
    return {
        label: rate
        for label, rate in rates.items()
        if isinstance(rate, dict) and is_known(rate.get("seconds_per_step")) and rate["seconds_per_step"] > 0
    }
