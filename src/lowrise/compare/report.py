"""The files and tables of a comparison: JSON, Markdown, terminal, and an HTML page with curves."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from lowrise.compare.table import COST, QUALITY, RATIOS, Column, Comparison, Row, cells
from lowrise.console import Console
from lowrise.files import is_known, write_whole
from lowrise.report import html
from lowrise.report.charts import Series, chart
from lowrise.report.formatting import number
from lowrise.runs.history import read_run

Curve = tuple[np.ndarray, np.ndarray]  # tokens or FLOPs, validation loss


def write_comparison(
    directory: Path, comparison: Comparison, runs_dir: Path, environment: dict[str, Any]
) -> None:
    """Write `compare.json`, `compare.md` and `report.html` into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    document = without_nan({"format": 1, **asdict(comparison), "environment": environment})
    write_whole(directory / "compare.json", json.dumps(document, indent=1, allow_nan=False) + "\n")
    write_whole(directory / "compare.md", to_markdown(comparison))
    write_whole(directory / "report.html", to_html(comparison, runs_dir, environment))


def without_nan(value: Any) -> Any:
    """JSON has no NaN: what is not finite becomes null."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_markdown(comparison: Comparison) -> str:
    """One table, the ratios to its first row, failures and notes."""

    def table(columns: Sequence[Column]) -> str:
        header, rows = cells(comparison, columns)
        lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
        return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines)

    parts = [f"# Comparison at {comparison.budget}", table(QUALITY + COST)]
    if len(comparison.rows) > 1:
        parts += [f"Ratios to {comparison.rows[0].label}:", table(RATIOS)]
    failures = failure_lines(comparison)
    if failures:
        parts += ["Runs without a result:", "\n".join(f"- {line}" for line in failures)]
    parts += ["Notes:", "\n".join(f"- {note}" for note in comparison.notes)]
    return "\n\n".join(parts) + "\n"


def failure_lines(comparison: Comparison) -> list[str]:
    """A line a diverged or failed run: its name and the first line of its error."""
    return [
        f"{run['name']}: {run['status']}" + (f": {run['error'].splitlines()[0]}" if run["error"] else "")
        for run in comparison.runs
        if run["status"] in ("diverged", "failed")
    ]


def print_comparison(console: Console, comparison: Comparison) -> None:
    """The table in two parts, quality and cost, so that it fits a terminal; then failures and the notes on
    rows.
    """
    parts = [(f"Quality at {comparison.budget}", QUALITY), ("Cost", (QUALITY[0], *COST))]
    if len(comparison.rows) > 1:
        parts.append((f"Ratios to {comparison.rows[0].label}", RATIOS))
    for title, columns in parts:
        header, rows = cells(comparison, columns)
        table = Table(title=title, title_justify="left", header_style="bold")
        for i, name in enumerate(header):
            table.add_column(name, justify="right" if i else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in [*failure_lines(comparison), *comparison.notes[len(comparison.rules) :]]:
        console.print(Text.assemble(("•", "yellow"), f" {line}"))


def to_html(comparison: Comparison, runs_dir: Path, environment: dict[str, Any]) -> str:
    """The page: table, curves at the chosen learning rates, sensitivity, settings that differ, every run."""
    rows = comparison.rows
    title = "Comparison: " + ", ".join(row.label for row in rows)
    body = [html.heading(title, f"Equal budget of {comparison.budget} a run")]
    troubles = [f"{row.label}: {lost}" for row in rows if (lost := _without_result(row))]
    if troubles:
        body.append(html.warning("Not every run has a result.\n" + "\n".join(troubles)))
    body.append(html.section("Result", html.table(*cells(comparison, QUALITY))))
    body.append(html.section("Cost", html.table(*cells(comparison, (QUALITY[0], *COST)))))
    if len(rows) > 1:
        body.append(html.section(f"Ratios to {rows[0].label}", html.table(*cells(comparison, RATIOS))))
    body.append(_curves_section(comparison, runs_dir))
    body.append(_sensitivity_section(comparison))
    if comparison.settings:
        header = ["setting", *(row.label for row in rows)]
        settings = [[key, *(str(by[row.label]) for row in rows)] for key, by in comparison.settings.items()]
        body.append(html.section("Settings that differ", html.table(header, settings, text=True)))
    notes = "".join(html.note(text) for text in comparison.notes)
    body.append(html.section("How to read this", notes))
    listed = [
        [
            run["name"],
            "chosen" if run["chosen"] else "grid",
            run["status"],
            number(run["val_loss"]),
            run["error"],
        ]
        for run in comparison.runs
    ]
    runs = html.table(("run", "role", "status", "val loss", "error"), listed, text=True)
    body.append(html.section("Runs", html.folded(f"All {len(listed)} runs", runs)))
    about = [[key, str(value)] for key, value in environment.items()]
    body.append(html.section("Environment", html.table(("what", "value"), about, text=True)))
    return html.page(title, body, "lowrise comparison report")


def _without_result(row: Row) -> str:
    counts = ((row.diverged, "diverged"), (row.failed, "failed"), (row.waiting, "still to do"))
    return ", ".join(f"{count} {what}" for count, what in counts if count)


def _curves_section(comparison: Comparison, runs_dir: Path) -> str:
    about = "At the chosen learning rate: mean over the seeds, with a band of one standard deviation."
    figures = []
    for x_key, x_label in (("tokens", "training tokens"), ("flops", "training FLOPs")):
        curves = {row.label: _curves(comparison, runs_dir, row.label, x_key) for row in comparison.rows}
        series = [_seed_series(label, found, i) for i, (label, found) in enumerate(curves.items()) if found]
        end = max((float(max(one.x)) for one in series if len(one.x)), default=1.0)
        y_label = "validation loss (nats per token)"
        figures.append(
            chart(
                series,
                x_label=x_label,
                y_label=y_label,
                height=360,
                x_range=(0.0, end),
                y_range=_focus(series),
            )
        )
    return html.section("Validation loss along the way", html.note(about), *figures)


def _curves(comparison: Comparison, runs_dir: Path, label: str, x_key: str) -> list[Curve]:
    """One curve a completed seed. FLOPs so far are the run's total in proportion to its tokens."""
    curves = []
    for run in comparison.runs:
        directory = runs_dir / run["name"]
        if (
            run["recipe"] != label
            or not run["chosen"]
            or run["status"] != "completed"
            or not directory.is_dir()
        ):
            continue
        tokens, losses = read_run(directory).column("tokens", "val_loss")
        total, flops = run["summary"].get("tokens"), run["summary"].get("train_flops")
        if is_known(total) and total > 0 and (not tokens or tokens[-1] < total):
            tokens, losses = [*tokens, float(total)], [*losses, float(run["val_loss"])]
        x = np.array(tokens)
        if x_key == "flops":
            if not (is_known(total) and is_known(flops) and total > 0):
                continue
            x = x * (flops / total)
        curves.append((x, np.array(losses)))
    return curves


def seed_band(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x, mean, sd) over the curves, at the x that all of them have; sd is zero for a single curve."""
    values: dict[float, list[float]] = defaultdict(list)
    for xs, ys in curves:
        for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
            values[x].append(y)
    shared = sorted(x for x, found in values.items() if len(found) == len(curves))
    mean = [statistics.fmean(values[x]) for x in shared]
    sd = [statistics.stdev(values[x]) if len(curves) > 1 else 0.0 for x in shared]
    return np.array(shared), np.array(mean), np.array(sd)


def _seed_series(label: str, curves: Sequence[Curve], color: int) -> Series:
    x, mean, sd = seed_band(curves)
    return Series(label, x, mean, color, "both" if len(x) <= 40 else "line", mean - sd, mean + sd)


def _focus(series: Sequence[Series]) -> tuple[float, float] | None:
    """Leaves out the first fall from the y axis (what lies above every curve's value at a tenth of its
    way).
    """
    ends = [float(np.nanmin(s.low if s.low is not None else s.y)) for s in series if len(s.y)]
    starts = [float(np.asarray(s.y)[np.asarray(s.x) >= 0.1 * max(s.x)][0]) for s in series if len(s.y)]
    if not ends or max(starts) <= min(ends):
        return None
    pad = 0.05 * (max(starts) - min(ends))
    return min(ends) - pad, max(starts) + pad


def _sensitivity_section(comparison: Comparison) -> str:
    """Validation loss over the learning rate, first seed; with two rates, the best over the other one."""
    series, missing = [], []
    for color, row in enumerate(comparison.rows):
        best: dict[float, float] = {}
        for run in (run for run in comparison.runs if run["recipe"] == row.label and run["grid"]):
            if run["val_loss"] is None:
                if run["status"] == "diverged":
                    missing.append(f"{row.label} at {run['lr']:g}")
                continue
            best[run["lr"]] = min(best.get(run["lr"], math.inf), run["val_loss"])
        lrs = sorted(best)
        series.append(Series(row.label, lrs, [best[lr] for lr in lrs], color, "both"))
    figure = chart(
        series, x_label="learning rate", y_label="validation loss (nats per token)", height=320, log_x=True
    )
    about = "Every point is one run with the first seed at the full budget."
    diverged = f" Diverged, so not drawn: {', '.join(missing)}." if missing else ""
    return html.section("Sensitivity to the learning rate", html.note(about + diverged), figure)
