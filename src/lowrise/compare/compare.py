"""`lowrise compare`: recipes x learning rates x seeds at an equal budget, in parallel workers, one table.

    recipes -> plan (plan.py) -> runs still to do (tuning.py) -> workers (workers.py) -> summary.json of each
            -> outcomes (here) -> table (table.py) -> files (compare_report.py)

`DIR/runs/NAME` is a run directory like any other; its name ends with the hash of its configuration, so
that the same run serves several tables. `DIR/tables/BUDGET` holds each table, and `DIR` itself a copy
of the newest one.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from lowrise.compare.live import Display
from lowrise.compare.plan import (
    RULES,
    CompareConfig,
    LoadRecipe,
    Plan,
    PlanRun,
    RunKey,
    RunSpec,
    build_plan,
    resolve,
)
from lowrise.compare.report import print_comparison, without_nan, write_comparison
from lowrise.compare.table import aggregate
from lowrise.compare.tuning import Outcome, expected_runs, required_runs
from lowrise.compare.workers import Ended, Job, Pool, default_slots, hold_directory
from lowrise.console import Console
from lowrise.errors import LowriseError
from lowrise.files import is_known, read_json, write_whole
from lowrise.report.formatting import learning_rate, scientific, si
from lowrise.runs.history import last_metrics, read_summary
from lowrise.signals import StopRequest, told

TRAIN_COMMAND = (sys.executable, "-m", "lowrise", "train")
STOP_SECONDS = 120.0  # time for a worker to write its checkpoint after SIGTERM
_POLL_SECONDS = 0.1
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
    does what is missing. Raises `UsageError` for a request that cannot be right, before anything is run.
    """
    plan = build_plan(config, load_recipe, plan_run)
    specs = {key: resolve(plan, key, load_recipe) for key in required_runs(plan, {})}
    out = Path(config.out)
    table_dir, runs_dir = out / "tables" / plan.budget.name, out / "runs"
    size, gpus = default_slots()
    size = config.workers or size
    environment = describe_environment(size)
    with hold_directory(out) as lock, StopRequest() as stop:
        changed = write_plan(table_dir, plan, list(specs.values()), environment)
        _print_plan(console, plan, size)
        with Pool(size, gpus=gpus, inherit=[lock]) as pool, Display(console, runs_dir) as display:
            runner = _Runner(plan, specs, runs_dir, load_recipe, tuple(command), pool, display, stop)
            outcomes = runner.run()
        comparison = aggregate(plan, specs, outcomes)
        if changed:
            note = f"The plan was changed {changed} time(s) after it was first written (see plan-*.json)."
            comparison = replace(comparison, notes=(*comparison.notes, note))
        write_comparison(table_dir, comparison, runs_dir, environment)
        for name in _TABLE_FILES:
            shutil.copyfile(table_dir / name, out / name)
    print_comparison(console, comparison)
    console.print(f"Written: {out / 'compare.json'}, compare.md, report.html", soft_wrap=True)
    if stop.signal is not None:
        console.print(told(stop.signal), style="yellow")
        return 128 + stop.signal
    return 1 if any(outcome.status == "failed" for outcome in outcomes.values()) else 0


class _Runner:
    """The loop: start what is needed, collect what ended, until nothing is left or a stop is asked for."""

    def __init__(
        self,
        plan: Plan,
        specs: dict[RunKey, RunSpec],
        runs_dir: Path,
        load_recipe: LoadRecipe,
        command: tuple[str, ...],
        pool: Pool,
        display: Display,
        stop: StopRequest,
    ) -> None:
        self._plan, self._specs, self._runs_dir, self._load_recipe = plan, specs, runs_dir, load_recipe
        self._command, self._pool, self._display, self._stop = command, pool, display, stop
        self._outcomes: dict[RunKey, Outcome] = {}

    def run(self) -> dict[RunKey, Outcome]:
        waiting = self._waiting()
        while waiting or self._pool.running:
            if self._stop.count:
                self._wind_down()
                break
            while waiting and self._pool.free:
                self._start(waiting.pop(0))
            ended = self._pool.poll()
            for one in ended:
                self._collect(one)
            if ended:
                waiting = self._waiting()
            expected = expected_runs(self._plan, self._outcomes)
            self._display.refresh(self._running(), waiting, len(self._outcomes), expected)
            time.sleep(0 if ended else _POLL_SECONDS)
        return self._outcomes

    def _waiting(self) -> list[RunSpec]:
        """The runs to start next, in order. Results of earlier starts are taken in on the way."""
        while True:
            fresh = False
            waiting = []
            for key in required_runs(self._plan, self._outcomes):
                if key in self._outcomes:
                    continue
                spec = self._specs.get(key) or resolve(self._plan, key, self._load_recipe)
                self._specs[key] = spec
                if spec.name in self._pool.running:
                    continue
                earlier = read_earlier(spec, self._runs_dir / spec.name)
                if earlier:
                    self._outcomes[key] = earlier
                    fresh = True
                else:
                    waiting.append(spec)
            if not fresh:
                return waiting

    def _running(self) -> list[RunSpec]:
        by_name = {spec.name: spec for spec in self._specs.values()}
        return [by_name[name] for name in self._pool.running]

    def _start(self, spec: RunSpec) -> None:
        directory = self._runs_dir / spec.name
        settings = [word for key, value in spec.overrides.items() for word in flag_words(key, value)]
        arguments = (*self._command, spec.recipe_path, "--run", str(directory), *settings)
        self._display.started(spec)
        self._pool.start(Job(spec.name, directory, arguments))

    def _collect(self, ended: Ended) -> None:
        spec = next(spec for spec in self._specs.values() if spec.name == ended.job.name)
        outcome = read_outcome(spec, self._runs_dir / spec.name, ended)
        if self._stop.count and outcome.status == "failed":
            return  # it stopped because it was asked to; the next start continues it
        self._outcomes[spec.key] = outcome
        self._display.ended(spec, outcome, ended.seconds)

    def _wind_down(self) -> None:
        """Ask the workers to save and stop; a second signal, or too long a wait, kills them."""
        count = len(self._pool.running)
        self._display.line(f"Stopping: {count} worker(s) save a checkpoint (again to kill them at once).")
        self._pool.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while self._pool.running:
            if self._stop.count > 1 or time.monotonic() > deadline:
                self._pool.signal(signal.SIGKILL)
            for ended in self._pool.poll():
                self._collect(ended)
            time.sleep(_POLL_SECONDS)


def flag_words(key: str, value: Any) -> list[str]:
    """A setting as the train command reads it: `--key value`, a list's members one after the other."""
    if isinstance(value, dict):
        members = [word for pair in value.items() for word in pair]
    else:
        members = list(value) if isinstance(value, list | tuple) else [value]
    return [f"--{key}", *(str(member) for member in members)]


def read_earlier(spec: RunSpec, directory: Path) -> Outcome | None:
    """The outcome that an earlier start left, or None if the run must be started or continued.

    A diverged run is not repeated: it would give the same bits again. A failed one is tried once more.
    """
    summary = read_summary(directory)
    if not summary or summary.get("status") not in ("completed", "failed"):
        return None
    outcome = _judge(spec, directory, summary)
    return None if outcome.status == "failed" else outcome


def read_outcome(spec: RunSpec, directory: Path, ended: Ended) -> Outcome:
    """How a run ended that was started here, from its summary, its exit status and the end of its stderr."""
    summary = read_summary(directory) or {}
    if summary.get("status") == "completed" and ended.returncode == 0:
        return _judge(spec, directory, summary)
    if summary.get("status") == "failed" and ended.returncode > 0:
        outcome = _judge(spec, directory, summary)
        tail = f"\n{ended.stderr_tail}" if ended.stderr_tail else ""
        return Outcome(outcome.status, None, outcome.summary, outcome.error + tail)
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode).name
        reason = f"The worker was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    elif ended.returncode == 0:
        reason = f"The worker exited without a completed summary.json (status {summary.get('status')!r})"
    else:
        reason = f"The worker exited with status {ended.returncode}"
    return Outcome("failed", None, summary, f"{reason}.\n{ended.stderr_tail}".strip())


def _judge(spec: RunSpec, directory: Path, summary: dict[str, Any]) -> Outcome:
    """Completed, diverged or failed, from a final summary alone."""
    error = str(summary.get("error") or "")
    recorded, planned = str(summary.get("config_hash") or ""), spec.config_hash
    if recorded and not (planned.startswith(recorded) or recorded.startswith(planned)):
        reason = (
            f"It ran configuration {recorded}, not {planned}: the recipe was changed meanwhile. Start again."
        )
        return Outcome("failed", None, summary, reason)
    if summary.get("status") == "completed":
        loss = summary.get("val_loss")
        if is_known(loss):
            return Outcome("completed", float(loss), summary)
        return Outcome("diverged", None, summary, f"The validation loss is {loss}.")
    last_loss = last_metrics(directory / "metrics.jsonl").get("loss")
    not_finite = isinstance(last_loss, float) and not is_known(last_loss)
    if not_finite or any(word in error.lower() for word in ("non-finite", "not finite", "diverged")):
        return Outcome("diverged", None, summary, error)
    return Outcome("failed", None, summary, error or "The run failed and recorded no reason.")


def describe_environment(workers: int) -> dict[str, Any]:
    """Versions and hardware, as far as they bear on the numbers in the table."""
    import torch

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "lowrise": _version("lowrise"),
        "torch": _version("torch"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor,
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


def write_plan(table_dir: Path, plan: Plan, specs: Sequence[RunSpec], environment: dict[str, Any]) -> int:
    """Write `plan.json` before any run; a different earlier plan is kept beside it. Returns how many
    there are.
    """
    table_dir.mkdir(parents=True, exist_ok=True)
    recipes = [
        {key: value for key, value in asdict(recipe).items() if key != "config"} for recipe in plan.recipes
    ]
    body = {
        "budget": asdict(plan.budget),
        "seeds": plan.seeds,
        "lr_factors": plan.lr_factors,
        "other_lr_factors": plan.other_lr_factors,
        "max_extensions": plan.max_extensions,
        "settings": dict(plan.overrides),
        "rules": RULES,
        "recipes": recipes,
        "grid_runs": [{"name": s.name, "config_hash": s.config_hash, "settings": s.overrides} for s in specs],
    }
    body = json.loads(json.dumps(without_nan(body), default=str))
    target = table_dir / "plan.json"
    try:
        earlier = read_json(target)
    except FileNotFoundError:
        earlier = None
    except (OSError, ValueError):
        earlier = {}  # damaged: another plan, and kept like one
    changes = len(list(table_dir.glob("plan-*.json")))
    if earlier is not None:
        if isinstance(earlier, dict) and {key: earlier.get(key) for key in body} == body:
            return changes
        changes += 1
        target.replace(table_dir / f"plan-{changes}.json")
    document = {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        **body,
        "environment": environment,
    }
    try:
        write_whole(target, json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise LowriseError(f"{target} cannot be written: {error.strerror}. Choose another --out.") from error
    return changes


def _print_plan(console: Console, plan: Plan, workers: int) -> None:
    """What will be done, and by which rules it will be read, before it is done."""
    grid = len(plan.lr_factors) * len(plan.other_lr_factors)
    runs = len(plan.recipes) * (grid + len(plan.seeds) - 1)
    console.print(
        f"Comparison at {plan.budget} of {len(plan.recipes)} recipe(s): {grid} grid point(s), then "
        f"{len(plan.seeds)} seed(s) for the best: {runs} runs, {workers} at once",
        style="bold",
    )
    for recipe in plan.recipes:
        lrs = ", ".join(learning_rate(recipe.lr * factor) for factor in plan.lr_factors)
        tokens = si(recipe.steps * recipe.tokens_per_step)
        flops = scientific(recipe.steps * recipe.flops_per_step)
        work = f"{recipe.steps} steps, {tokens} tokens, {flops} FLOPs a run; learning rates {lrs}"
        console.print(f"  {recipe.label}: {work}")
    for rule in RULES.values():
        console.print(f"  • {rule}", style="dim")
