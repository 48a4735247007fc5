"""`lowrise compare`: recipes x learning rates x seeds at an equal budget, in parallel workers, one table.

    recipes -> plan (plan.py) -> runs still to do (tuning.py) -> workers (runner.py, workers.py)
            -> summary.json of each -> outcomes (outcomes.py) -> table (table.py) -> files (report.py)

`DIR/runs/NAME` is a run directory like any other; its name ends with the hash of its configuration, so
that the same run serves several tables. `DIR/tables/BUDGET` holds each table, and `DIR` itself a copy
of the newest one.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from lowrise.compare.about import about, in_one_line
from lowrise.compare.live import Display
from lowrise.compare.options import CompareConfig
from lowrise.compare.outcomes import Outcome, RunSpec
from lowrise.compare.plan import AXES, LoadRecipe, Plan, PlanRun, RunKey, build_plan, resolve
from lowrise.compare.preview import show_plan
from lowrise.compare.rates import with_steps
from lowrise.compare.report import print_comparison, without_nan, write_comparison, write_numbers
from lowrise.compare.rows import Comparison
from lowrise.compare.rules import rules
from lowrise.compare.runner import TRAIN_COMMAND, Runner, exit_status
from lowrise.compare.stored import keep_plan
from lowrise.compare.table import aggregate
from lowrise.compare.tuning import expected_runs, required_runs
from lowrise.compare.workers import Pool, hold_directory, slots
from lowrise.console import Console
from lowrise.signals import StopRequest

_TABLE_FILES = ("plan.json", "compare.json", "compare.md", "report.html")


def compare(
    config: CompareConfig,
    *,
    load_recipe: LoadRecipe,
    plan_run: PlanRun,
    console: Console,
    command: Sequence[str] = TRAIN_COMMAND,
) -> int:
    """Run the comparison, or what is left of it, and write its table.

    Returns 0 when every run has a result (a diverged run has one: it diverged), 1 when a run failed, and
    128 + N when signal N interrupted the comparison; the table is written in any case, and a second start
    does what is missing. With `config.plan` the plan is shown, and nothing run or written. Raises
    `UsageError` for a request that cannot be right, before anything is run.
    """
    plan = build_plan(config, load_recipe, plan_run)
    if config.plan:
        show_plan(plan, console)
        return 0
    out = Path(config.out)
    table_dir, runs_dir = out / "tables" / plan.name, out / "runs"
    size, gpus = slots(config.workers)
    environment = describe_environment(size)
    with hold_directory(out, "lowrise compare") as lock, StopRequest() as stop:
        with Pool(size, gpus=gpus, inherit=[lock]) as pool, Display(console, runs_dir) as display:
            parts: dict[str, Any] = {
                "runs_dir": runs_dir,
                "command": command,
                "pool": pool,
                "display": display,
                "stop": stop,
            }
            if plan.budget.unit == "seconds":

                def run_all(probes: Sequence[RunSpec[Any]]) -> Mapping[Any, Outcome]:
                    return Runner(lambda _: probes, lambda _: len(probes), **parts).run()

                timed = with_steps(plan, table_dir, runs_dir, load_recipe, size, run_all)
                if timed is None:
                    return exit_status(console, stop, failed=True)
                plan = timed
            runs = Runs(plan, load_recipe)
            changed = write_plan(table_dir, plan, runs.required({}), environment)
            _print_plan(display, plan, size)

            def keep(found: Mapping[RunKey, Outcome]) -> None:
                with suppress(OSError):  # a full disk ends the runs before it ends the table
                    write_numbers(table_dir, so_far(plan, runs, found, changed), environment)

            outcomes = Runner(runs.required, runs.expected, **parts, keep=keep).run()
        comparison = so_far(plan, runs, outcomes, changed)
        write_comparison(table_dir, comparison, runs_dir, environment)
        for name in _TABLE_FILES:
            shutil.copyfile(table_dir / name, out / name)
    print_comparison(console, comparison)
    console.print(f"Written: {out / 'compare.json'}, compare.md, report.html", soft_wrap=True)
    failed = any(outcome.status == "failed" for outcome in outcomes.values())
    return exit_status(console, stop, failed=failed)


class Runs:
    """Every run that was asked for so far, made concrete once."""

    def __init__(self, plan: Plan, load_recipe: LoadRecipe) -> None:
        self._plan, self._load_recipe = plan, load_recipe
        self.specs: dict[RunKey, RunSpec[RunKey]] = {}

    def required(self, outcomes: Mapping[RunKey, Outcome]) -> list[RunSpec[RunKey]]:
        keys = required_runs(self._plan, outcomes)
        for key in keys:
            if key not in self.specs:
                self.specs[key] = resolve(self._plan, key, self._load_recipe)
        return [self.specs[key] for key in keys]

    def expected(self, outcomes: Mapping[RunKey, Outcome]) -> int:
        return expected_runs(self._plan, outcomes)


def so_far(plan: Plan, runs: Runs, outcomes: Mapping[RunKey, Outcome], changed: int) -> Comparison:
    """The table of these outcomes. `changed`: how often the plan was changed."""
    comparison = aggregate(plan, runs.specs, outcomes)
    if not changed:
        return comparison
    note = f"The plan was changed {changed} time(s) after it was first written (see plan-*.json)."
    return replace(comparison, notes=(*comparison.notes, note))


def describe_environment(workers: int) -> dict[str, Any]:
    """Versions and hardware, as far as they bear on the numbers in the table."""
    import torch

    from lowrise.runs.environment import processor_name

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "lowrise": _version("lowrise"),
        "torch": _version("torch"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "gpus": gpus,
        "workers at once": workers,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        import lowrise

        return lowrise.__version__ if package == "lowrise" else "unknown"


def write_plan(
    table_dir: Path, plan: Plan, specs: Sequence[RunSpec[RunKey]], environment: dict[str, Any]
) -> int:
    """Write `plan.json` before any run; a different earlier plan is kept beside it. Returns how many
    there are.
    """
    table_dir.mkdir(parents=True, exist_ok=True)
    recipes = [
        {key: value for key, value in asdict(recipe).items() if key != "config"} for recipe in plan.recipes
    ]
    body = {
        "budget": asdict(plan.budget),
        "size": None if plan.size is None else asdict(plan.size),
        "seeds": plan.seeds,
        **{f"{axis}_factors": plan.factors(axis) for axis in AXES},
        "max_extensions": plan.max_extensions,
        "test": plan.test,
        "correction": plan.correction,
        "settings": dict(plan.overrides),
        "rules": rules(plan),
        "recipes": recipes,
        "grid_runs": [{"name": s.name, "config_hash": s.config_hash, "settings": s.overrides} for s in specs],
    }
    body = json.loads(json.dumps(without_nan(body), default=str))
    return keep_plan(table_dir / "plan.json", body, environment=environment)


def _print_plan(display: Display, plan: Plan, workers: int) -> None:
    """What will be done, and by which rules it will be read, before it is done."""
    runs = len(plan.recipes) * (plan.grid_points + len(plan.seeds) - 1)
    display.line(
        f"Comparison at {plan.allowance} of {len(plan.recipes)} recipe(s): {plan.grid_points} grid point(s), "
        f"then {len(plan.seeds)} seed(s) for the best: {runs} runs, {workers} at once",
        style="bold",
    )
    for what, by_recipe in about(plan).items():
        if what not in ("budget", "seeds"):
            display.line(f"  {what}: {in_one_line(by_recipe)}")
    for rule in rules(plan).values():
        display.line(f"  • {rule}", style="dim")
