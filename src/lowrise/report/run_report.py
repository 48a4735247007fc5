"""`report.html` of one run: what came out, how it went there, and all that is needed to repeat it.

Reads files only (`lowrise.runs.history`), so it may be written again at any time, also for a run that
failed or still goes on.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lowrise.config.identity import flatten
from lowrise.files import is_known, write_whole
from lowrise.report import html
from lowrise.report.charts import COLORS, Series, chart, smooth
from lowrise.report.formatting import (
    UNKNOWN,
    bytes_,
    duration,
    milliseconds,
    number,
    percent,
    scientific,
    si,
)
from lowrise.report.spikes import Spike, spikes_of
from lowrise.runs.history import Run, read_run

_SPIKES = 20  # rows of their table

# (key of summary.json, what a reader calls it, how it is written, one of the main results)
_KEY_FIGURES: tuple[tuple[str, str, Callable[[Any], str], bool], ...] = (
    ("val_loss", "validation loss (nats)", number, True),
    ("val_perplexity", "validation perplexity", lambda v: number(v, 2), True),
    ("val_bits_per_byte", "validation bits per byte", number, True),
    ("ema_val_loss", "with the average of the last weights", number, False),
    ("tokens", "training tokens", si, False),
    ("train_flops", "training FLOPs", scientific, False),
    ("flops_per_token", "FLOPs per token", scientific, False),
    ("params_total", "parameters", si, False),
    ("params_non_embedding", "without embeddings", si, False),
    ("tokens_per_second", "tokens per second", si, False),
    ("optimizer_step_ms", "optimizer, per step", milliseconds, False),
    ("state_bytes_measured", "optimizer state", bytes_, False),
    ("peak_memory_bytes", "peak memory", bytes_, False),
    ("wall_seconds", "wall time", duration, False),
    ("steps", "optimizer steps", si, False),
)

_TELEMETRY: tuple[tuple[str, str, bool], ...] = (  # key, title, logarithmic axis
    ("weight_spectral_norm", "Weight spectral norm ‖W‖₂", False),
    ("update_over_lr", "Update spectral norm ‖ΔW‖₂ / learning rate", False),
    ("stable_rank", "Stable rank ‖W‖²_F / ‖W‖₂²", False),
    ("effective_rank", "Effective rank (exponential of the spectral entropy)", False),
    ("orthonormality_error", "Orthonormality error of the bases", True),
    ("rank", "Rank chosen by the energy of the singular values", False),
)


_BY_LAYER = ("stable_rank", "effective_rank", "rank")  # shown for every layer too


def write_report(run_dir: str | Path) -> Path:
    """Write `run_dir/report.html`, self-contained, and return its path.

    Missing files and missing keys leave a dash or a sentence in the page. Raises `UsageError` if
    `run_dir` is not a run directory.
    """
    run = read_run(run_dir)
    target = run.path / "report.html"
    write_whole(target, render(run))
    return target


def render(run: Run) -> str:
    """The report of `run` as one HTML document."""
    summary = run.summary
    title = f"{summary.get('method', 'run')} · {run.path.resolve().name}"
    figures = [
        (what, show(summary.get(key)), main)
        for key, what, show, main in _KEY_FIGURES
        if key in summary or main
    ]
    body = [html.heading(title, _subtitle(run)), *_state_of_run(run), html.tiles(figures), *_curves(run)]
    body += [_telemetry(run), _sample(run), _configuration(run), _environment(run)]
    config_hash = summary.get("config_hash")
    footer = f"lowrise run report · {run.path.resolve().name}" + (
        f" · config {config_hash}" if config_hash else ""
    )
    return html.page(title, [part for part in body if part], footer)


def _subtitle(run: Run) -> str:
    """Method, layer, optimizer, model and corpus, as far as the files tell."""
    try:
        config = tomllib.loads(run.config)
    except tomllib.TOMLDecodeError:
        config = {}
    model, data = config.get("model", {}), config.get("data", {})
    parts = [f"{name} {run.summary[name]}" for name in ("layer", "optimizer") if run.summary.get(name)]
    if isinstance(model, dict) and model.get("preset"):
        parts.append(f"model {model['preset']}")
    corpus = next((data[k] for k in ("corpus", "source", "sources", "path") if data.get(k)), None)
    if corpus is not None:
        parts.append(f"corpus {corpus if isinstance(corpus, str) else ', '.join(map(str, corpus))}")
    if "seed" in run.summary:
        parts.append(f"seed {run.summary['seed']}")
    return " · ".join(parts)


def _state_of_run(run: Run) -> list[str]:
    warnings = []
    status = run.summary.get("status")
    if status == "failed":
        warnings.append(f"This run failed. {run.summary.get('error', 'No reason was recorded.')}")
    elif status == "interrupted":
        warnings.append("This run was interrupted; the same command continues it.")
    elif status != "completed":
        warnings.append("This run has not finished: there is no final summary yet.")
    warnings += [f"{problem[0].upper()}{problem[1:]}." for problem in run.problems]
    return [html.warning("\n".join(warnings))] if warnings else []


def _step_label(run: Run) -> str:
    """Says how many tokens a step has, from the last line that knows both."""
    steps, tokens = run.column("step", "tokens")
    per_step = tokens[-1] / steps[-1] if steps and steps[-1] else None
    return f"step ({per_step:,.0f} tokens each)" if per_step else "step"


def _curves(run: Run) -> list[str]:
    steps, losses = run.column("step", "loss")
    eval_steps, eval_losses = run.column("step", "val_loss")
    ema_steps, ema_losses = run.column("step", "ema_val_loss")
    lr_steps, lrs = run.column("step", "lr")
    norm_steps, norms = run.column("step", "grad_norm")
    if not (steps or eval_steps):
        return [html.section("Loss", html.note("No step was logged."))]
    x_range = _step_range(steps + eval_steps)
    x_label = _step_label(run)
    spikes = spikes_of(run)
    lines = [
        Series("training loss", steps, losses, 0, "faint"),
        Series("smoothed", steps, smooth(losses), 0),
        Series("validation loss", eval_steps, eval_losses, 1, "both"),
        Series(
            "spike",
            [spike.step for spike in spikes],
            [spike.loss for spike in spikes],
            4,
            "points",
            notes=[spike.changed for spike in spikes],
        ),
        Series("with the average", ema_steps, ema_losses, 3, "both"),
    ]
    loss = chart(
        lines,
        x_label=x_label,
        y_label="loss (nats per token)",
        height=340,
        x_range=x_range,
        y_range=loss_range(losses, eval_losses),
    )
    rate = chart(
        [Series("learning rate", lr_steps, lrs, 2)],
        x_label=x_label,
        y_label="learning rate",
        height=140,
        x_range=x_range,
        y_range=(0.0, 1.05 * max(lrs)) if lrs and max(lrs) > 0 else None,
    )
    parts = [html.section("Loss and learning rate", loss, rate, _spike_table(spikes))]
    if norms:
        gradient = chart(
            [
                Series("gradient norm", norm_steps, norms, 3, "faint"),
                Series("smoothed", norm_steps, smooth(norms), 3),
            ],
            x_label=x_label,
            y_label="norm",
            height=200,
            x_range=x_range,
            log_y=min(norms) > 0 and max(norms) > 20 * float(np.median(norms)),
        )
        parts.append(html.section("Gradient norm (before clipping)", gradient))
    return parts


def _spike_table(spikes: list[Spike]) -> str:
    """The largest ones, what the log says of them."""
    if not spikes:
        return ""
    largest = sorted(sorted(spikes, key=lambda s: s.loss - s.usual)[-_SPIKES:], key=lambda s: s.step)
    rows = [
        (str(s.step), number(s.loss), number(s.usual), s.changed or "nothing unusual was logged")
        for s in largest
    ]
    title = f"{len(spikes)} spike(s) of the training loss" + (
        f", the {_SPIKES} largest" if len(spikes) > _SPIKES else ""
    )
    return html.folded(title, html.table(("step", "loss", "median before", "what changed then"), rows))


def _step_range(steps: list[float]) -> tuple[float, float]:
    low, high = 0.0, max(steps)
    return (low, high) if high > low else (low, low + 1)


def loss_range(losses: list[float], evaluations: list[float]) -> tuple[float, float] | None:
    """Leaves out single spikes of the training loss (above its 99.5th percentile); validation points are
    never cut.
    """
    values = np.array(losses + evaluations)
    if len(values) < 2 or values.min() == values.max():
        return None
    high = max([float(np.quantile(values, 0.995)), *losses[:1], *evaluations])
    pad = 0.04 * (high - values.min())
    return float(values.min() - pad), high + pad


def matrix_type(name: str) -> str:
    """`model.layers.3.mlp.gate_proj.A` -> `gate_proj`: the last part that is neither a number nor a
    parameter's letter.
    """
    parts = [p for p in name.split(".") if not re.fullmatch(r"\d+|weight|[ABUVs]", p)]
    return parts[-1] if parts else name


def telemetry_by_type(run: Run) -> dict[str, dict[str, dict[int, list[float]]]]:
    """quantity -> matrix type -> step -> values over the layers. `update_over_lr` is derived with the
    line's own rate.
    """
    found: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for row in run.metrics:
        matrices = row.get("matrices")
        if not isinstance(matrices, dict):
            continue
        for name, values in matrices.items():
            if not isinstance(values, dict):
                continue
            values = dict(values)
            update, lr = values.get("update_spectral_norm"), row.get("lr")
            if is_known(update) and is_known(lr) and lr > 0:
                values["update_over_lr"] = update / lr
            for key, value in values.items():
                if is_known(value):
                    found[key][matrix_type(name)][row["step"]].append(float(value))
    return found


def _telemetry(run: Run) -> str:
    found = telemetry_by_type(run)
    shown = [(key, title, log) for key, title, log in _TELEMETRY if found.get(key)]
    if not shown:
        return ""
    types = sorted({name for key, _, _ in shown for name in found[key]})
    figures = []
    for key, title, log in shown:
        series = [
            _telemetry_series(name, found[key][name], types.index(name))
            for name in types
            if name in found[key]
        ]
        figure = chart(
            series,
            x_label="step",
            y_label=key.replace("_", " "),
            width=450,
            height=270,
            log_y=log,
        )
        figures.append(html.titled(title, figure))
    about = "Mean over the layers of each matrix type; the band goes from the smallest to the largest layer."
    every = [
        html.folded(f"{title}: every layer", _by_layer(run, key))
        for key, title, _ in shown
        if key in _BY_LAYER
    ]
    return html.section("Spectra of the weights", html.note(about), html.pair(*figures), *every)


def _by_layer(run: Run, key: str) -> str:
    """A chart for each matrix type with a curve for each of its layers."""
    found: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in run.metrics:
        matrices = row.get("matrices")
        for name, values in matrices.items() if isinstance(matrices, dict) else ():
            if isinstance(values, dict) and is_known(values.get(key)):
                found[matrix_type(name)][name][row["step"]] = float(values[key])
    figures = [
        html.titled(
            kind,
            chart(
                [
                    Series(layer_of(name), list(by_step), list(by_step.values()), i)
                    for i, (name, by_step) in enumerate(layers.items())
                ],
                x_label="step",
                y_label=key.replace("_", " "),
                width=450,
                height=270,
                legend=len(layers) <= COLORS,
            ),
        )
        for kind, layers in sorted(found.items())
    ]
    return html.pair(*figures)


def layer_of(name: str) -> str:
    """`model.layers.3.mlp.gate_proj` -> `layer 3`; the whole name where it has no number."""
    number_ = next((part for part in name.split(".") if part.isdigit()), None)
    return name if number_ is None else f"layer {number_}"


def _telemetry_series(name: str, by_step: dict[int, list[float]], color: int) -> Series:
    steps = sorted(by_step)
    mean = [math.fsum(by_step[s]) / len(by_step[s]) for s in steps]
    low, high = [min(by_step[s]) for s in steps], [max(by_step[s]) for s in steps]
    return Series(name, steps, mean, color, "line", low, high)


def _sample(run: Run) -> str:
    return html.section("Generated sample", html.preformatted(run.sample, prose=True)) if run.sample else ""


def _configuration(run: Run) -> str:
    if not run.config:
        return ""
    return html.section(
        "Configuration", html.folded("config.toml: enough to repeat this run", html.preformatted(run.config))
    )


def _starts(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """A row for every start of a run that was started more than once: where it went on, with what."""
    history = environment.get("history")
    if not isinstance(history, list) or len(history) < 2:
        return []
    rows = []
    for start in history:
        if not isinstance(start, dict):
            continue
        changed = start.get("changed")
        pairs = changed.items() if isinstance(changed, dict) else ()
        told = [f"{key}: {' -> '.join(map(str, v))}" for key, v in pairs if isinstance(v, list)]
        where = f"{start.get('ranks')} rank(s), {start.get('device')}"
        rows.append((f"start at step {start.get('step')}", "; ".join([str(start.get("time")), where, *told])))
    return rows


def _environment(run: Run) -> str:
    facts = {key: value for key, value in run.environment.items() if key not in ("seal", "history")}
    rows = [(key, str(value)) for key, value in flatten(facts, empty=True).items()] + _starts(run.environment)
    planned, measured = (run.summary.get(f"state_bytes_{what}") for what in ("planned", "measured"))
    if is_known(planned) and is_known(measured):
        off = (
            "as planned"
            if measured == planned
            else f"{percent(measured / planned - 1) if planned else UNKNOWN} off"
        )
        rows.append(("optimizer state", f"planned {bytes_(planned)}, measured {bytes_(measured)} ({off})"))
    return html.section("Environment", html.facts(rows)) if rows else ""
