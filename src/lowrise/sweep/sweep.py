"""`lowrise sweep`: trials of a recipe with other settings, in parallel workers, one table, the best recipe.

    recipe + space -> trials (space.py, optuna_search.py) -> runs (compare/runner.py) -> summary.json of each
                   -> values (trials.py) -> sweep.json, sweep.md, report.html, best.toml

`DIR/runs/NAME` is a run directory like any other; its name ends with the hash of its configuration. A second
start takes in what is finished and continues the rest, with a larger space or more trials too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lowrise.compare.compare import describe_environment
from lowrise.compare.live import Display
from lowrise.compare.outcomes import Outcome, RunSpec
from lowrise.compare.plan import LoadRecipe, PlanRun
from lowrise.compare.runner import TRAIN_COMMAND, Runner, exit_status
from lowrise.compare.stored import today, write_stored
from lowrise.compare.workers import Pool, hold_directory, slots
from lowrise.console import Console
from lowrise.errors import UsageError
from lowrise.signals import StopRequest
from lowrise.sweep.options import SweepConfig
from lowrise.sweep.optuna_search import draw
from lowrise.sweep.plan import SweepPlan, build_plan, require_ends, specs_of
from lowrise.sweep.report import print_sweep, write_numbers, write_sweep
from lowrise.sweep.trials import Record, Trial, TrialKey, best_of, judged


def sweep(
    config: SweepConfig,
    *,
    load_recipe: LoadRecipe,
    plan_run: PlanRun,
    console: Console,
    command: Sequence[str] = TRAIN_COMMAND,
) -> int:
    """Run the sweep, or what is left of it, and write its table and the best recipe.

    Returns 0 when every trial has a result (a diverged one and a refused one have), 1 when a run failed, and
    128 + N when signal N interrupted the sweep. Raises `UsageError` for a request that cannot be right.
    """
    plan = build_plan(config, load_recipe)
    require_ends(plan, load_recipe, plan_run)
    out = Path(config.out)
    size, gpus = slots(config.workers)
    environment = describe_environment(size)
    runs_dir = out / "runs"
    with hold_directory(out, "lowrise sweep") as lock, StopRequest() as stop:
        search = _Search(plan, load_recipe, plan_run, out, size)
        search.require_some()
        _write_plan(out, plan)

        def keep(found: Mapping[TrialKey, Outcome]) -> None:
            with suppress(OSError):  # a full disk ends the runs before it ends the table
                write_numbers(out, plan, search.judged(found), environment)

        with Pool(size, gpus=gpus, inherit=[lock]) as pool, Display(console, runs_dir) as display:
            _print_plan(display, plan, size)
            outcomes = Runner(
                search.required,
                search.expected,
                runs_dir=runs_dir,
                command=command,
                pool=pool,
                display=display,
                stop=stop,
                keep=keep,
            ).run()
        trials = search.judged(outcomes)
        write_sweep(out, plan, trials, environment)
    print_sweep(console, plan, trials)
    written = "sweep.md, report.html" + (", best.toml" if best_of(trials) else "")
    console.print(f"Written: {out / 'sweep.json'}, {written}", soft_wrap=True)
    return exit_status(console, stop, failed=any(trial.status == "failed" for trial in trials))


class _Search:
    """The trials so far, and the next ones as workers become free."""

    def __init__(
        self, plan: SweepPlan, load_recipe: LoadRecipe, plan_run: PlanRun, out: Path, workers: int
    ) -> None:
        self._plan, self._load_recipe, self._plan_run, self._workers = plan, load_recipe, plan_run, workers
        self._record = Record(out / "trials.json", plan.identity)
        self._trials: list[Trial] = []
        self._specs: dict[int, list[RunSpec[TrialKey]]] = {}
        for settings in self._record.read() if plan.search == "optuna" else plan.trials:
            self._add(settings)

    def require_some(self) -> None:
        """`UsageError` where every trial was refused, as the first of them says."""
        if self._trials and all(trial.status == "refused" for trial in self._trials):
            raise UsageError(self._trials[0].error)

    def required(self, outcomes: Mapping[TrialKey, Outcome]) -> list[RunSpec[TrialKey]]:
        """Every run; where the search follows results, no more trials at once than there are workers."""
        if self._plan.search == "optuna":
            while len(self._trials) < self._plan.total and self._unfinished(outcomes) < self._workers:
                self._add(self._drawn(outcomes))
                self._record.write([trial.settings for trial in self._trials])
        return [spec for trial in self._trials for spec in self._specs.get(trial.number, [])]

    def expected(self, outcomes: Mapping[TrialKey, Outcome]) -> int:
        refused = sum(trial.status == "refused" for trial in self._trials)
        return (max(self._plan.total, len(self._trials)) - refused) * len(self._plan.seeds)

    def judged(self, outcomes: Mapping[TrialKey, Outcome]) -> list[Trial]:
        """Every trial with its result."""
        plan = self._plan
        return [judged(trial, plan.seeds, outcomes, plan.goal) for trial in self._trials]

    def _add(self, settings: dict[str, Any]) -> None:
        number = len(self._trials) + 1
        trial = Trial(number, dict(settings))
        try:
            self._specs[number] = specs_of(self._plan, trial, self._load_recipe, self._plan_run)
            trial = Trial(number, dict(settings), runs=tuple(spec.name for spec in self._specs[number]))
        except UsageError as error:
            trial = Trial(number, dict(settings), "refused", error=str(error))
        self._trials.append(trial)

    def _unfinished(self, outcomes: Mapping[TrialKey, Outcome]) -> int:
        return sum(trial.status == "waiting" for trial in self.judged(outcomes))

    def _drawn(self, outcomes: Mapping[TrialKey, Outcome]) -> dict[str, Any]:
        states = {"waiting": "running", "failed": "refused"}  # a failure says nothing about its settings
        history = [
            (trial.settings, states.get(trial.status, trial.status), trial.value)
            for trial in self.judged(outcomes)
        ]
        return draw(self._plan.space, history, total=self._plan.total, seed=self._plan.search_seed)


def _write_plan(out: Path, plan: SweepPlan) -> None:
    document = {
        "written": today(),
        **plan.identity,
        "trials": plan.total,
        "seeds": plan.seeds,
    }
    write_stored(out / "plan.json", json.dumps(document, indent=1, default=str))


def _print_plan(display: Display, plan: SweepPlan, workers: int) -> None:
    runs = plan.total * len(plan.seeds)
    length = f" at {plan.budget} a run" if plan.budget else ""
    display.line(
        f"Sweep ({plan.search}) of {plan.recipe}{length}: {plan.total} trial(s), {runs} run(s), "
        f"{workers} at once",
        style="bold",
    )
    for dimension in plan.space:
        display.line(f"  {dimension}")
