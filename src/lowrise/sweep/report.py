"""The files of a sweep: JSON, Markdown, the best recipe, terminal; the HTML page is in `page.py`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from lowrise.compare.report import markdown_table, without_nan
from lowrise.compare.stored import read_stored, stored
from lowrise.console import Console
from lowrise.files import write_whole
from lowrise.report.formatting import UNKNOWN, number, si
from lowrise.sweep.page import to_html
from lowrise.sweep.plan import SweepPlan
from lowrise.sweep.space import shown, words_of
from lowrise.sweep.trials import Trial, best_of, edges

_ON_TERMINAL = 10  # trials


def write_sweep(out: Path, plan: SweepPlan, trials: Sequence[Trial], environment: dict[str, Any]) -> None:
    """Write `sweep.json`, `sweep.md`, `report.html` and, where a trial completed, `best.toml`."""
    best = best_of(trials)
    write_numbers(out, plan, trials, environment)
    write_whole(out / "sweep.md", to_markdown(plan, trials))
    write_page(out)
    if best is not None:
        recipe = out / "runs" / best.runs[0] / "config.toml"
        shutil.copyfile(recipe, out / "best.toml")


def write_numbers(out: Path, plan: SweepPlan, trials: Sequence[Trial], environment: dict[str, Any]) -> None:
    """Write `sweep.json`, all that the page is made of."""
    best = best_of(trials)
    document = {
        "format": 1,
        **plan.identity,
        "seeds": plan.seeds,
        "trials": [asdict(trial) for trial in trials],
        "best": None if best is None else best.number,
        "edges": edges(plan.space, trials),
        "notes": notes(plan, trials),
        "plan": {key: value for key, value in asdict(plan).items() if key != "trials"},
        "environment": environment,
    }
    text = json.dumps(without_nan(document), indent=1, allow_nan=False, default=str)
    write_whole(out / "sweep.json", text + "\n")


def is_sweep(folder: Path) -> bool:
    """Whether this is the folder of a sweep, unless it is one of scaling."""
    return (folder / "sweep.json").is_file()


def write_page(out: Path, target: Path | None = None) -> Path:
    """Write the page of the `sweep.json` in `out`, there or as `target`, and return its path. Raises
    `LowriseError` where it is damaged, or of a version that wrote another one.
    """
    source = out / "sweep.json"
    document = read_stored(source, "lowrise sweep")
    plan = stored(SweepPlan, document.get("plan"), source)
    trials = [stored(Trial, trial, source) for trial in document.get("trials", [])]
    target = target or out / "report.html"
    write_whole(target, to_html(plan, trials, notes(plan, trials), document.get("environment", {})))
    return target


def table_of(plan: SweepPlan, trials: Sequence[Trial]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): the best first, then those without a result."""
    keys = [dimension.key for dimension in plan.space]
    header = ["trial", *keys, plan.goal, "status", "params", "tok/s"]
    order = sorted(trials, key=lambda trial: (trial.value is None, trial.value or 0.0, trial.number))
    rows = [
        [
            str(trial.number),
            *(shown(trial.settings[key]) for key in keys),
            _value(trial),
            trial.status,
            si(trial.summary.get("params_total")),
            si(trial.summary.get("tokens_per_second")),
        ]
        for trial in order
    ]
    return header, rows


def _value(trial: Trial) -> str:
    if trial.value is None:
        return UNKNOWN
    return number(trial.value) + (f" (n={len(trial.values)})" if len(trial.values) > 1 else "")


def notes(plan: SweepPlan, trials: Sequence[Trial]) -> list[str]:
    """What a reader must know beside the numbers."""
    found, best = [], best_of(trials)
    if best is not None:
        found.append(
            f"Best: trial {best.number}, {words_of(best.settings)}: {plan.goal} {number(best.value)}."
        )
        seeds = len(plan.seeds)
        found.append(
            f"It was chosen as the lowest of {sum(t.value is not None for t in trials)} with {seeds} seed(s) "
            "each, so its value is optimistic, and neighbours that differ by less than seeds do are as good. "
            "lowrise compare with the recipe and best.toml says whether it is better."
        )
    found += [
        f"The best value of {edge} lies at the end of what was tried: a better one may lie outside."
        for edge in edges(plan.space, trials)
    ]
    counts = {status: sum(trial.status == status for trial in trials) for status in ("waiting", "failed")}
    if counts["waiting"]:
        found.append(f"{counts['waiting']} trial(s) are still to do; the same command continues.")
    if counts["failed"]:
        found.append(f"{counts['failed']} trial(s) failed; the same command tries them again.")
    if plan.search == "random" and plan.total > len(trials):
        found.append(f"The space has {len(trials)} distinct points only.")
    return found


def failure_lines(trials: Sequence[Trial]) -> list[str]:
    """A line for each trial without a value that has an error."""
    return [
        f"trial {trial.number} ({words_of(trial.settings)}): {trial.status}: {trial.error.splitlines()[0]}"
        for trial in trials
        if trial.status in ("failed", "diverged", "refused") and trial.error
    ]


def to_markdown(plan: SweepPlan, trials: Sequence[Trial]) -> str:
    """The table of all trials, failures, notes."""
    parts = [f"# Sweep ({plan.search}) of {plan.recipe}"]
    parts.append("\n".join(f"- {dimension}" for dimension in plan.space))
    parts.append(markdown_table(*table_of(plan, trials)))
    failures = failure_lines(trials)
    if failures:
        parts += ["Trials without a result:", "\n".join(f"- {line}" for line in failures)]
    parts += ["Notes:", "\n".join(f"- {note}" for note in notes(plan, trials))]
    return "\n\n".join(parts) + "\n"


def print_sweep(console: Console, plan: SweepPlan, trials: Sequence[Trial]) -> None:
    """The best trials, then failures and notes."""
    header, rows = table_of(plan, trials)
    more = len(rows) - _ON_TERMINAL
    title = f"The best {_ON_TERMINAL} of {len(rows)} trials" if more > 0 else f"{len(rows)} trials"
    table = Table(
        title=title, title_justify="left", header_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for name in header:
        table.add_column(name, justify="right", overflow="fold")
    for row in rows[:_ON_TERMINAL]:
        table.add_row(*row)
    console.print(table)
    console.print()
    for line in [*failure_lines(trials), *notes(plan, trials)]:
        console.print(Text.assemble(("•", "yellow"), f" {line}"))
