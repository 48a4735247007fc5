"""The HTML page of a comparison: result with its intervals, costs, curves, sensitivity, settings, runs."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowrise.compare.about import in_one_line
from lowrise.compare.columns import COST, DIFFERENCE, QUALITY, RATIOS, cells, published_cells
from lowrise.compare.plan import AXES
from lowrise.compare.rows import Comparison, Row
from lowrise.files import is_known
from lowrise.report import html
from lowrise.report.charts import Series, chart
from lowrise.report.differences import differences
from lowrise.report.formatting import number
from lowrise.report.intervals import Bar, intervals
from lowrise.report.pareto import Bought, pareto_section
from lowrise.runs.history import Run, read_run

Curve = tuple[np.ndarray, np.ndarray]  # tokens or FLOPs, validation loss
_NAMED = 4  # recipes in the title
_LOSS = "validation loss (nats per token)"


def to_html(comparison: Comparison, runs_dir: Path, environment: dict[str, Any]) -> str:
    """The page, from its title to the environment."""
    rows = comparison.rows
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    title = "Comparison: " + ", ".join(row.label for row in rows[:_NAMED]) + more
    body = [html.heading(title, f"Budget of a run: {comparison.budget}")]
    troubles = [f"{row.label}: {lost}" for row in rows if (lost := _without_result(row))]
    if troubles:
        body.append(html.warning("Not every run has a result.\n" + "\n".join(troubles)))
    about = [(what, in_one_line(by)) for what, by in comparison.about.items()]
    body.append(html.section("What was compared", html.facts(about)))
    body.append(html.section("Result", html.table(*cells(comparison, QUALITY))))
    if len(rows) > 1:
        body.append(_difference_section(comparison))
    weights = html.note("weights: bytes of the whole model in bfloat16, as it is when it is used.")
    body.append(html.section("Cost", html.table(*cells(comparison, COST)), weights))
    body.append(_pareto(comparison))
    if len(rows) > 1:
        body.append(html.section(f"Ratios to {rows[0].label}", html.table(*cells(comparison, RATIOS))))
    body.append(_curves_section(comparison, runs_dir))
    body += _sensitivity_sections(comparison)
    body.append(_published_section(comparison))
    if comparison.settings:
        table = differences(comparison.settings, [row.label for row in rows], key="setting")
        body.append(html.section("Settings that differ", table))
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
    body.append(html.section("Environment", html.facts(environment.items())))
    return html.page(title, body, "lowrise comparison report")


def _difference_section(comparison: Comparison) -> str:
    """The verdicts as a picture and as a table, and what these seeds could see."""
    first, others = comparison.rows[0], comparison.rows[1:]
    bars = []
    for color, row in enumerate(others, start=1):
        found = row.difference
        shown = {"Welch": found.welch, "paired": found.paired}
        decides = (found.low, found.high)
        for name, one in shown.items():
            if one is not None:
                counts = (one.low, one.high) == decides
                remark = found.verdict if counts else ""
                label = f"{row.label}, {name}"
                bars.append(Bar(label, one.mean, one.low, one.high, color, not counts, remark))
    figure = intervals(
        bars,
        x_label=f"difference of the validation loss from {first.label} (left of 0: lower), 95% interval",
        empty="There is no interval yet: two seeds on either side are needed.",
    )
    table = html.table(*cells(comparison, DIFFERENCE, others=True))
    undecided: dict[str, list[str]] = {}
    for row in others:
        if row.difference.because:
            undecided.setdefault(row.difference.because, []).append(row.label)
    why = [html.note(f"{', '.join(them)}: undecided, because {b}.") for b, them in undecided.items()]
    power = [html.note(line) for line in comparison.power]
    return html.section(f"Difference from {first.label}", figure, table, *why, *power)


def _published_section(comparison: Comparison) -> str:
    published = comparison.published
    table = html.table(*published_cells(comparison), text=True) if published.rows else ""
    return html.section("Published numbers", table, html.note(published.note))


def _without_result(row: Row) -> str:
    counts = ((row.diverged, "diverged"), (row.failed, "failed"), (row.waiting, "still to do"))
    return ", ".join(f"{count} {what}" for count, what in counts if count)


_BOUGHT_WITH = {
    "params_non_embedding": "parameters (without embedding and head)",
    "inference_bytes": "weights at inference (bytes in bfloat16)",
    "train_flops": "training FLOPs",
    "tokens": "training tokens",
    "state_bytes_measured": "optimizer state (bytes)",
    "peak_memory_bytes": "peak memory (bytes)",
    "train_seconds": "training time (seconds of updates)",
}


def _pareto(comparison: Comparison) -> str:
    bought = [
        Bought(row.label, row.val_loss.mean, row.val_loss.sd, row.costs, color)
        for color, row in enumerate(comparison.rows)
        if row.val_loss.mean is not None
    ]
    return pareto_section("What the loss was bought with", bought, _BOUGHT_WITH, y_label=_LOSS)


def _curves_section(comparison: Comparison, runs_dir: Path) -> str:
    about = (
        "At the chosen point: mean over the seeds, with a band of one standard deviation. Where "
        "runs are short, the points are of a part of the held-out text (eval.tokens), the same for all; the "
        "results above are of all of it."
    )
    title, figures = "Validation loss along the way", []
    for x_key, x_label in (("tokens", "training tokens"), ("flops", "training FLOPs")):
        curves = {row.label: _curves(comparison, runs_dir, row.label, x_key) for row in comparison.rows}
        series = [_seed_series(label, found, i) for i, (label, found) in enumerate(curves.items()) if found]
        if not series:
            return html.section(title, html.note("No run at a chosen point has completed yet."))
        end = max((float(max(one.x)) for one in series if len(one.x)), default=1.0)
        figures.append(
            chart(
                series,
                x_label=x_label,
                y_label=_LOSS,
                height=360,
                x_range=(0.0, end),
                y_range=_focus(series),
            )
        )
    return html.section(title, html.note(about), *figures)


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
        total, flops = run["summary"].get("tokens"), run["summary"].get("train_flops")
        tokens, losses = _points(read_run(directory), run)
        x = np.array(tokens)
        if x_key == "flops":
            if not (is_known(total) and is_known(flops) and total > 0):
                continue
            x = x * (flops / total)
        curves.append((x, np.array(losses)))
    return curves


def _points(run: Run, about: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """(tokens, validation losses) of one text: where evaluations along the way read a part of it, the
    last one, of all, is another number and no point of the curve.
    """
    tokens, losses = run.column("tokens", "val_loss")
    read_tokens, read_losses, read = run.column("tokens", "val_loss", "val_tokens")
    if len(read) > 1 and read[0] < read[-1]:
        same = [i for i, number in enumerate(read) if number == read[0]]
        return [read_tokens[i] for i in same], [read_losses[i] for i in same]
    total = about["summary"].get("tokens")
    if is_known(total) and total > 0 and (not tokens or tokens[-1] < total):
        return [*tokens, float(total)], [*losses, float(about["val_loss"])]
    return tokens, losses


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


def _sensitivity_sections(comparison: Comparison) -> list[str]:
    """A figure for each axis that some recipe's grid has more than one value of; the learning rate always."""
    sections = []
    for name, axis in AXES.items():
        tuned = any(row.best and row.best[f"{name}_tuned"] for row in comparison.rows)
        if name == "lr" or tuned:
            what = {"lr": "learning rate", "other_lr": "other learning rate"}.get(name, axis.word)
            sections.append(_sensitivity(comparison, name, f"{what} ({axis.key})", tuned))
    return sections


def _sensitivity(comparison: Comparison, axis: str, label: str, tuned: bool) -> str:
    """Validation loss over one axis, first seed, the best over all others; chosen points with their seeds."""
    series, missing = [], []
    for color, row in enumerate(comparison.rows):
        best: dict[float, float] = {}
        for run in (run for run in comparison.runs if run["recipe"] == row.label and run["grid"]):
            value = run[axis]
            if value is None:
                continue
            if run["val_loss"] is None:
                if run["status"] == "diverged":
                    missing.append(f"{row.label} at {value:g}")
                continue
            best[value] = min(best.get(value, math.inf), run["val_loss"])
        values = sorted(best)
        series.append(Series(row.label, values, [best[value] for value in values], color, "both"))
        if row.best and len(row.losses) > 1:
            seeds = list(row.losses.values())
            series.append(Series("", [row.best[axis]] * len(seeds), seeds, color, "points"))
    figure = chart(series, x_label=label, y_label=_LOSS, height=320, log_x=True)
    about = "Every point of a line is one run with the first seed at the full budget"
    about += ", the best over what else was tuned" if tuned else ""
    about += "; single points are the other seeds of the chosen one."
    diverged = f" Diverged, so not drawn: {', '.join(dict.fromkeys(missing))}." if missing else ""
    return html.section(f"Sensitivity to the {label}", html.note(about + diverged), figure)
