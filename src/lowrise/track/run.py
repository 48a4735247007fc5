"""`lowrise track run` and `check`: entries planned against the budgets, trained in parallel workers, written
down.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrise.compare.budget import step_flops
from lowrise.compare.compare import describe_environment
from lowrise.compare.live import Display
from lowrise.compare.outcomes import Outcome, RunSpec
from lowrise.compare.plan import SEED_KEY, STEPS_KEY, LoadRecipe, PlanRun, require_workers
from lowrise.compare.runner import TRAIN_COMMAND, Runner, exit_status
from lowrise.compare.workers import Pool, hold_directory, slots
from lowrise.console import Console
from lowrise.errors import LowriseError, UsageError
from lowrise.files import is_known, write_whole
from lowrise.signals import StopRequest
from lowrise.track.options import CheckOptions, RunOptions
from lowrise.track.results import Result, faults_of, read_result, write_result
from lowrise.track.track import (
    Entry,
    Track,
    inference_bytes_of,
    read_entry,
    read_track,
    require_size,
    steps_of,
)

Key = tuple[str, int]  # entry, seed


@dataclass(frozen=True)
class Planned:
    """An entry that keeps to the rules, and its runs."""

    entry: Entry
    specs: tuple[RunSpec[Key], ...]
    steps: int
    tokens: int
    params: int
    inference_bytes: int
    train_flops: float


def run(
    options: RunOptions,
    *,
    load_recipe: LoadRecipe,
    plan_run: PlanRun,
    console: Console,
    command: Sequence[str] = TRAIN_COMMAND,
) -> int:
    """Train what is missing, and write the results of the entries that are done.

    Returns 0 when every run has a result (one that diverged has), 1 when one failed, 128 + N after signal N.
    Raises `UsageError` for an entry that breaks the rules, before anything is trained.
    """
    require_workers(options.workers)
    track = read_track(options.track)
    names = track.chosen(options.entries)
    if not options.entries:
        names = [name for name in names if not _has_result(track, name)]
    if not names:
        console.print("Every entry has its result. lowrise track table shows them.", soft_wrap=True)
        return 0
    out = (options.out or Path("runs") / f"track-{track.folder.resolve().name}").expanduser()
    planned = [_planned(track, name, out, load_recipe, plan_run) for name in names]
    size, gpus = slots(options.workers)
    specs = [spec for one in planned for spec in one.specs]
    with hold_directory(out, "lowrise track run") as lock, StopRequest() as stop:
        with Pool(size, gpus=gpus, inherit=[lock]) as pool, Display(console, out / "runs") as display:
            display.line(f"{track.title}: {len(planned)} entries, {len(specs)} runs, {size} at once")
            outcomes = Runner(
                lambda outcomes: specs,
                lambda outcomes: len(specs),
                runs_dir=out / "runs",
                command=command,
                pool=pool,
                display=display,
                stop=stop,
            ).run()
        environment = describe_environment(size)
        written = [one.entry.name for one in planned if _write(track, one, outcomes, environment)]
    for name in written:
        console.print(f"Written: {track.result_path(name)}", soft_wrap=True)
    failed = any(outcome.status == "failed" for outcome in outcomes.values())
    return exit_status(console, stop, failed=failed)


def check(options: CheckOptions, *, load_recipe: LoadRecipe, plan_run: PlanRun, console: Console) -> int:
    """Say of every entry whether it keeps to the rules and whether its result is its own; 1 where one is
    not."""
    track = read_track(options.track)
    wrong = 0
    for name in track.chosen(options.entries):
        try:
            said = _checked(track, name, load_recipe, plan_run)
        except LowriseError as error:
            wrong += 1
            console.print(f"{name}: {error}", style="red", soft_wrap=True)
            continue
        console.print(f"{name}: {said}", soft_wrap=True)
    return 1 if wrong else 0


def _checked(track: Track, name: str, load_recipe: LoadRecipe, plan_run: PlanRun) -> str:
    entry = read_entry(track, name)
    facts = _within(track, entry, load_recipe, plan_run, None)
    result = read_result(track, name)
    said = (
        f"{facts['steps']:,} updates, {facts['train_flops']:.4g} of {track.train_flops:.4g} FLOPs, "
        f"{facts['inference_bytes']:,} of {track.inference_bytes:,} bytes"
    )
    if result is None:
        return f"{said}; not run yet"
    faults = faults_of(track, entry, result)
    if faults:
        raise UsageError(f"{'; '.join(faults)}.")
    return f"{said}; its result counts"


def _has_result(track: Track, name: str) -> bool:
    result = read_result(track, name)
    return result is not None and not faults_of(track, read_entry(track, name), result)


def _within(
    track: Track, entry: Entry, load_recipe: LoadRecipe, plan_run: PlanRun, recipe: Path | None
) -> dict[str, Any]:
    """What an entry's run will cost, which the budgets allow; `recipe`: where its TOML lies."""
    if recipe is None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{entry.name}.toml"
            write_whole(path, entry.to_toml())
            return _within(track, entry, load_recipe, plan_run, path)
    try:
        plan = plan_run(load_recipe(str(recipe), {}))
        require_size(track, entry, plan)
        steps = steps_of(track, plan)
        plan = plan_run(load_recipe(str(recipe), {STEPS_KEY: steps}))  # ranks may change over a run
        while steps > 1 and steps * step_flops(plan) > track.train_flops:
            steps -= 1
            plan = plan_run(load_recipe(str(recipe), {STEPS_KEY: steps}))
    except UsageError as error:
        raise UsageError(f"{track.folder / 'entries' / entry.name}.toml: {error}") from None
    return {
        "steps": steps,
        "tokens": steps * plan.tokens_per_step,
        "params": plan.params_total,
        "inference_bytes": inference_bytes_of(plan),
        "train_flops": steps * step_flops(plan),
    }


def _planned(track: Track, name: str, out: Path, load_recipe: LoadRecipe, plan_run: PlanRun) -> Planned:
    entry = read_entry(track, name)
    recipe = out / "recipes" / f"{name}.toml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    write_whole(recipe, entry.to_toml())
    facts = _within(track, entry, load_recipe, plan_run, recipe)
    specs = []
    for seed in track.seeds:
        overrides = {STEPS_KEY: facts["steps"], SEED_KEY: seed}
        found = load_recipe(str(recipe), dict(overrides)).hash
        directory = f"{name}-seed{seed}-{found[:10]}"
        specs.append(
            RunSpec(
                (name, seed), directory, str(recipe), overrides, found, facts["steps"], facts["train_flops"]
            )
        )
    return Planned(entry, tuple(specs), **facts)


def _write(
    track: Track, planned: Planned, outcomes: Mapping[Key, Outcome], environment: dict[str, Any]
) -> bool:
    """Write a result down if all its runs have one."""
    found = {spec.key[1]: outcomes.get(spec.key) for spec in planned.specs}
    if any(outcome is None or outcome.status == "failed" for outcome in found.values()):
        return False
    ended = {seed: outcome for seed, outcome in found.items() if outcome is not None}
    summaries = [outcome.summary for outcome in ended.values()]

    def of_seed(read: Callable[[Outcome], Any]) -> dict[int, float | None]:
        values = {seed: read(outcome) for seed, outcome in ended.items()}
        return {seed: float(value) if is_known(value) else None for seed, value in values.items()}

    result = Result(
        identity=planned.entry.identity,
        losses=of_seed(lambda outcome: outcome.val_loss),
        bits_per_byte=of_seed(lambda outcome: outcome.summary.get("val_bits_per_byte")),
        val_tokens=max((int(s.get("val_tokens") or 0) for s in summaries), default=0),
        steps=planned.steps,
        tokens=planned.tokens,
        params=planned.params,
        inference_bytes=planned.inference_bytes,
        train_flops=planned.train_flops,
        seconds=statistics.median(float(s.get("wall_seconds") or 0) for s in summaries),
        environment=environment | {"python": sys.version.split()[0]},
    )
    write_result(track, planned.entry.name, result)
    return True
