"""Several runs on one page: their figures in one table, their losses over tokens, FLOPs and time, and where
their recipes differ.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lowrise.config.identity import flatten
from lowrise.files import is_known, write_whole
from lowrise.report import html
from lowrise.report.charts import Series, chart, smooth
from lowrise.report.differences import differences
from lowrise.report.formatting import UNKNOWN, bytes_, duration, number, scientific, si
from lowrise.report.run_report import loss_range
from lowrise.runs.history import Run, read_run

_FEW = 3  # runs whose names stand above every chart
_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("val_loss", "validation loss", number),
    ("val_bits_per_byte", "bits per byte", number),
    ("tokens", "tokens", si),
    ("train_flops", "FLOPs", scientific),
    ("params_total", "parameters", si),
    ("state_bytes_measured", "state", bytes_),
    ("tokens_per_second", "tokens/s", si),
    ("wall_seconds", "time", duration),
    ("status", "status", str),
)


def write_several(folders: Sequence[str | Path], target: Path) -> Path:
    """Write the page of these runs. Raises `UsageError` for a folder that is no run."""
    runs = [read_run(Path(folder).expanduser()) for folder in folders]
    write_whole(target, render_several(runs))
    return target


def render_several(runs: Sequence[Run]) -> str:
    """One HTML document."""
    names = _names(runs)
    title = f"{len(runs)} runs"
    body = [
        html.heading(title, " · ".join(names)),
        html.section("Figures", _figures(runs, names)),
        html.section("Validation loss", *_validation(runs, names)),
        html.section("Training loss, smoothed", _training(runs, names)),
        html.section("Where the recipes differ", recipe_difference([run.config for run in runs], names)),
    ]
    problems = [f"{name}: {text}" for name, run in zip(names, runs, strict=True) for text in run.problems]
    if problems:
        body.insert(1, html.warning("\n".join(problems)))
    return html.page(title, body, "lowrise report of several runs")


def recipe_difference(recipes: Sequence[str], names: Sequence[str]) -> str:
    """A table of the keys whose values are not the same in all recipes (TOML), or a sentence."""
    flat = [flatten(_parsed(text), empty=True) for text in recipes]
    keys = sorted({key for recipe in flat for key in recipe})
    by_key = {key: {name: one.get(key) for name, one in zip(names, flat, strict=True)} for key in keys}
    return differences(by_key, names, key="key")


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        return {}


def _names(runs: Sequence[Run]) -> list[str]:
    """The folders' names, with as much of their paths as tells them apart."""
    paths = [run.path.resolve() for run in runs]
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({i})" for i, path in enumerate(paths, start=1)]


def _figures(runs: Sequence[Run], names: Sequence[str]) -> str:
    shown = [column for column in _COLUMNS if any(column[0] in run.summary for run in runs)]
    rows = [
        (name, *(_cell(run.summary.get(key), show) for key, _, show in shown))
        for name, run in zip(names, runs, strict=True)
    ]
    return html.table(("run", *(title for _, title, _ in shown)), rows)


def _cell(value: Any, show: Callable[[Any], str]) -> str:
    return UNKNOWN if value is None else show(value)


def _validation(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """Over tokens, and over FLOPs and training time where the runs tell them."""
    figures: list[str] = []
    for label, per_token in (
        ("tokens", lambda run: 1.0),
        ("training FLOPs", lambda run: _ratio(run, "train_flops", "tokens")),
        ("training time (s)", lambda run: _inverse(run.summary.get("tokens_per_second"))),
    ):
        series = []
        for i, (name, run) in enumerate(zip(names, runs, strict=True)):
            tokens, losses = run.column("tokens", "val_loss")
            factor = per_token(run)
            if factor is not None and tokens:
                series.append(Series(name, [t * factor for t in tokens], losses, i, "both"))
        if series:
            width, height = (860, 320) if label == "tokens" else (450, 270)
            y_label = "validation loss (nats per token)"
            legend = not figures or len(runs) <= _FEW  # of many runs the first one is enough
            figures.append(
                chart(series, x_label=label, y_label=y_label, width=width, height=height, legend=legend)
            )
    return [figures[0], html.pair(*figures[1:])] if figures else [html.note("No run was evaluated.")]


def _ratio(run: Run, above: str, below: str) -> float | None:
    a, b = run.summary.get(above), run.summary.get(below)
    return a / b if is_known(a) and is_known(b) and b > 0 else None


def _inverse(value: Any) -> float | None:
    return 1 / value if is_known(value) and value > 0 else None


def _training(runs: Sequence[Run], names: Sequence[str]) -> str:
    series, every, first = [], [], []
    for i, (name, run) in enumerate(zip(names, runs, strict=True)):
        tokens, losses = run.column("tokens", "loss")
        series.append(Series(name, tokens, smooth(losses), i))
        every += losses
        first += losses[:1]
    # Spikes are left out and no run is: a short one may lie where the long ones have only their beginning.
    span = loss_range(every, first)
    return chart(series, x_label="tokens", y_label="loss (nats per token)", height=320, y_range=span)
