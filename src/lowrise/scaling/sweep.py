"""`lowrise scaling run`: the runs of a sweep in parallel workers, then its points, fit and report.

`DIR/runs/NAME` is a run directory like any other; its name ends with the hash of its configuration.
`DIR/plan.json` says beforehand which runs there are, `DIR/points.csv` what came of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lowrise.compare.compare import describe_environment
from lowrise.compare.live import Display
from lowrise.compare.outcomes import Outcome
from lowrise.compare.plan import LoadRecipe, PlanRun
from lowrise.compare.runner import TRAIN_COMMAND, Runner, exit_status
from lowrise.compare.stored import keep_plan
from lowrise.compare.workers import Pool, hold_directory, slots
from lowrise.console import Console, narrow_table
from lowrise.files import strict_json, write_whole
from lowrise.report.formatting import learning_rate, scientific, si
from lowrise.scaling.options import SweepOptions
from lowrise.scaling.plan import SweepPlan, build_plan
from lowrise.signals import StopRequest


def sweep(
    options: SweepOptions,
    *,
    load_recipe: LoadRecipe,
    plan_run: PlanRun,
    console: Console,
    command: Sequence[str] = TRAIN_COMMAND,
) -> int:
    """Run the sweep, or what is left of it.

    Returns 0 when every run has a result (a diverged run has one), 1 when a run failed, and 128 + N when
    signal N interrupted it; `sweep.json` is written in any case. Raises `UsageError` before anything is run.
    """
    plan = build_plan(options, load_recipe, plan_run)
    size, gpus = slots(options.workers)
    show_plan(console, plan)
    if options.plan:
        return 0
    out, environment = Path(options.out), describe_environment(size)
    with hold_directory(out, "lowrise scaling run") as lock, StopRequest() as stop:
        keep_plan(out / "plan.json", json.loads(strict_json(plan.document())))
        runs_dir = out / "runs"
        with Pool(size, gpus=gpus, inherit=[lock]) as pool, Display(console, runs_dir) as display:
            specs = [run.spec for run in plan.runs]

            def keep(found: Mapping[str, Outcome]) -> None:
                with suppress(OSError):  # a full disk ends the runs before it ends the table
                    write_results(out, plan, found, environment)

            outcomes = Runner(
                lambda outcomes: specs,
                lambda outcomes: len(specs),
                runs_dir=runs_dir,
                command=command,
                pool=pool,
                display=display,
                stop=stop,
                keep=keep,
            ).run()
        write_results(out, plan, outcomes, environment)
    failed = any(outcome.status == "failed" for outcome in outcomes.values())
    return exit_status(console, stop, failed=failed)


def write_results(
    out: Path, plan: SweepPlan, outcomes: Mapping[str, Outcome], environment: dict[str, Any]
) -> None:
    """Write `sweep.json`."""
    document = {**results(plan, outcomes), "environment": environment}
    write_whole(out / "sweep.json", strict_json(document, indent=1) + "\n")


def results(plan: SweepPlan, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """`sweep.json`: the plan's rules and one row for each run, with its loss where it has one."""
    rows = []
    for run in plan.runs:
        outcome = outcomes.get(run.spec.name, Outcome("failed", error="not run yet"))
        waiting = run.spec.name not in outcomes
        rows.append(
            {
                "method": run.method,
                "budget": run.budget,
                "flops": run.spec.flops,
                "params": run.params,
                "params_total": outcome.summary.get("params_total"),
                "tokens": run.tokens,
                "loss": outcome.val_loss,
                "bits_per_byte": outcome.summary.get("val_bits_per_byte"),
                "seed": run.seed,
                "width": run.width,
                "lr": run.lr,
                "steps": run.spec.steps,
                "status": "waiting" if waiting else outcome.status,
                "name": run.spec.name,
                "error": outcome.error.splitlines()[0] if outcome.error and not waiting else None,
            }
        )
    return {
        "format": 1,
        "budgets": plan.budgets,
        "methods": plan.methods,
        "rules": plan.rules,
        "points": rows,
    }


def show_plan(console: Console, plan: SweepPlan) -> None:
    """Every size with its cost, before it is run."""
    table = narrow_table()
    table.add_column("method", no_wrap=True)
    for name in ("budget", "width", "params", "tokens", "tok/param", "steps", "lr"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = set()
    for run in sorted(plan.runs, key=lambda run: plan.methods.index(run.method)):
        row = (
            run.method,
            scientific(run.budget, 2),
            str(run.width),
            si(run.params),
            si(run.tokens),
            f"{run.tokens / run.params:.3g}",
            str(run.spec.steps),
            learning_rate(run.lr),
        )
        if row not in shown:
            shown.add(row)
            table.add_row(*row)
    console.print(table)
    total = sum(run.spec.flops for run in plan.runs)
    console.print(f"{len(plan.runs)} runs, {scientific(total)} FLOPs in all", style="bold")
