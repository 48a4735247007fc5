"""The report of a scaling study: one HTML file with isoFLOP curves, optima, laws and multipliers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lowrise.report import html
from lowrise.report.charts import Series, chart
from lowrise.report.forest import Estimate, forest
from lowrise.report.formatting import number, scientific, si
from lowrise.scaling.fit import PUBLISHED, MethodFit, Study, law, sentence, with_interval
from lowrise.scaling.isoflop import Interval, Parabola

_CURVE = 81
_FAR = 5.0  # an interval of sizes is drawn so far from the optima
_LOSS = "loss (nats per token)"


def to_html(study: Study, title: str = "Scaling study") -> str:
    """The page. A pure function of the study."""
    level = f"{100 * study.rules.level:g}%"
    budgets = sorted({p.budget for p in study.points})
    names = ", ".join(study.methods)
    about = f"{names}: {len(study.points)} points at {len(budgets)} budgets; intervals of {level}"
    body = [html.heading(title, about), html.tiles(_tiles(study))]
    if study.left_out:
        lines = "\n".join(study.left_out[:10])
        body.append(html.warning(f"{len(study.left_out)} row(s) have no loss and were left out.\n{lines}"))
    body.append(_iso_section(study))
    body.append(_optima_section(study))
    body.append(_exponents_section(study, level))
    if study.multipliers:
        body.append(_multiplier_section(study, level))
    body.append(_parametric_section(study))
    body.append(_notes_section(study))
    body.append(html.section("Points", html.folded(f"All {len(study.points)} points", _points_table(study))))
    return html.page(title, body, "lowrise scaling report")


def _tiles(study: Study) -> list[tuple[str, str, bool]]:
    found: list[tuple[str, str, bool]] = []
    for m in study.multipliers:
        if m.times is not None:
            found.append((f"{m.method}: FLOPs of {m.reference}'s", f"{m.times.value:.2f}x", True))
    for name, fit in study.methods.items():
        if fit.isoflop.params is not None:
            value = f"{fit.isoflop.params.exponent.value:.3f}"
            found.append((f"{name}: exponent of N_opt", value, False))
    return found


def _iso_section(study: Study) -> str:
    """Loss over size, one figure a method on one pair of axes, one colour a budget."""
    losses = np.concatenate([fit.points.loss for fit in study.methods.values()])
    sizes = np.concatenate([fit.points.params for fit in study.methods.values()])
    pad = 0.05 * float(np.ptp(losses)) or 0.1
    y_range = float(losses.min()) - pad, float(losses.max()) + pad
    x_range = float(sizes.min()) / 1.15, float(sizes.max()) * 1.15
    budgets = sorted({p.budget for p in study.points})
    figures = [
        html.titled(
            name,
            chart(
                _iso_series(fit, budgets),
                x_label="parameters N",
                y_label=_LOSS,
                width=450,
                height=280,
                log_x=True,
                x_range=x_range,
                y_range=y_range,
            ),
        )
        for name, fit in study.methods.items()
    ]
    about = (
        "Each point is a run, each colour a budget of training FLOPs, each curve the parabola in log N; the "
        "thin line goes through the minima."
    )
    return html.section("Loss over size at equal FLOPs", html.note(about), html.pair(*figures))


def _iso_series(fit: MethodFit, budgets: Sequence[float]) -> list[Series]:
    series = []
    for color, budget in enumerate(budgets):
        here = fit.points.budget == budget
        name = f"{scientific(budget, 2)} FLOPs" if here.any() else ""
        series.append(Series(name, fit.points.params[here], fit.points.loss[here], color, "points"))
        parabola = next((p for p in fit.isoflop.parabolas if p.budget == budget), None)
        if parabola is not None:
            sizes = fit.points.params[here]
            x = np.geomspace(sizes.min() / 1.1, sizes.max() * 1.1, _CURVE)
            series.append(Series("", x, parabola.at(x), color))
    found = [p for p in fit.isoflop.parabolas if p.counts]
    minima = np.array([p.params.value for p in found]), np.array([p.loss.value for p in found])
    return [Series("", *minima, 7, "faint"), *series]


def _optima_section(study: Study) -> str:
    figures = []
    for what, label in (("params", "N_opt, parameters"), ("tokens", "D_opt, tokens")):
        series: list[Series] = []
        for color, (name, fit) in enumerate(study.methods.items()):
            found = [p for p in fit.isoflop.parabolas if p.counts]
            series.append(_optima(name, found, what, color))
            power = getattr(fit.isoflop, what)
            if power is not None:
                flops = np.geomspace(found[0].budget / 1.5, found[-1].budget * 1.5, _CURVE)
                series.append(Series("", flops, power.at(flops), color))
        figures.append(
            chart(
                series,
                x_label="training FLOPs C",
                y_label=label,
                width=450,
                height=280,
                log_x=True,
                log_y=True,
                y_range=_near(series, factor=_FAR),
            )
        )
    frontier = [
        _optima(name, [p for p in fit.isoflop.parabolas if p.counts], "loss", color, "both")
        for color, (name, fit) in enumerate(study.methods.items())
    ]
    best = chart(
        frontier,
        x_label="training FLOPs C",
        y_label="loss at the minimum",
        height=320,
        log_x=True,
        y_range=_near(frontier, factor=None),
    )
    about = "An interval that leaves the plot goes on outside; the pointer tells its ends."
    return html.section("The optimum at each budget", html.note(about), html.pair(*figures), best)


def _near(series: Sequence[Series], factor: float | None) -> tuple[float, float] | None:
    """A range of y around the values, so that one open interval does not flatten all others: what lies
    further from them than by `factor`, or (None) than by their own span, is cut.
    """
    values = np.concatenate([np.asarray(one.y, dtype=np.float64) for one in series])
    ends = [
        np.asarray(end, dtype=np.float64) for one in series for end in (one.low, one.high) if end is not None
    ]
    everything = np.concatenate([values, *ends])
    values, everything = values[np.isfinite(values)], everything[np.isfinite(everything)]
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    span = (high - low) or 0.05 * abs(high)
    least, most = (low - span, high + span) if factor is None else (low / factor, high * factor)
    low, high = max(float(everything.min()), least), min(float(everything.max()), most)
    if low == high:  # one value alone: the chart makes room around it
        return None
    pad = 0.05 * (high - low)
    return (low - pad, high + pad) if factor is None else (low / 1.1, high * 1.1)


def _optima(name: str, found: Sequence[Parabola], what: str, color: int, kind: str = "points") -> Series:
    ends: list[Interval] = [getattr(p, what) for p in found]
    columns = [np.array([getattr(end, side) for end in ends]) for side in ("value", "low", "high")]
    flops = np.array([p.budget for p in found])
    value, low, high = columns
    return Series(name, flops, value, color, "both" if kind == "both" else "points", low, high)


def _exponents_section(study: Study, level: str) -> str:
    rows = [
        [
            name,
            law(fit.isoflop.params),
            law(fit.isoflop.tokens),
            with_interval(fit.parametric.params_exponent if fit.parametric else None),
            with_interval(fit.parametric.tokens_exponent if fit.parametric else None),
            number(fit.isoflop.sigma),
        ]
        for name, fit in study.methods.items()
    ]
    published = [[f"{source} ({note})", f"{n:g}", f"{d:g}"] for source, n, d, note in PUBLISHED]
    header = ("method", "N_opt, isoFLOP", "D_opt, isoFLOP", "N_opt, parametric", "D_opt, parametric", "noise")
    estimates = []
    for color, (name, fit) in enumerate(study.methods.items()):
        if fit.isoflop.params is not None:
            estimates.append(_estimate(f"{name}, isoFLOP", fit.isoflop.params.exponent, color))
        if fit.parametric is not None:
            estimates.append(_estimate(f"{name}, parametric", fit.parametric.params_exponent, color))
    for source, n, _, _ in PUBLISHED:
        estimates.append(Estimate(source.split(":")[0].split(",")[0] + " (published)", n, color=7))
    figure = forest(estimates, x_label=f"exponent of N_opt, {level} intervals")
    beside = html.table(("published", "N_opt", "D_opt"), published, text=True)
    return html.section("Exponents", figure, html.table(header, rows), beside)


def _estimate(name: str, one: Interval, color: int) -> Estimate:
    return Estimate(name, one.value, one.low, one.high, color)


def _multiplier_section(study: Study, level: str) -> str:
    said = "".join(html.note(sentence(m)) for m in study.multipliers)
    known = [m for m in study.multipliers if m.times is not None]
    estimates = []
    for m in known:
        for what, one in (("all", m.times), ("small compute", m.at_small), ("large compute", m.at_large)):
            if one is not None:
                color = list(study.methods).index(m.method)
                estimates.append(_estimate(f"{m.method}, {what}", one, color))
    figure = forest(estimates, x_label=f"share of {study.reference}'s FLOPs, {level} intervals", mark=1.0)
    about = (
        "FLOPs of the method over FLOPs of the reference at equal loss, both at their best size, over the "
        "losses that both reach; small and large compute are the ends of these."
    )
    return html.section("Method against method", said, figure if known else "", html.note(about))


def _parametric_section(study: Study) -> str:
    rows = []
    for name, fit in study.methods.items():
        p = fit.parametric
        if p is not None:
            cells = [with_interval(one) for one in (p.E, p.A, p.alpha, p.B, p.beta)]
            rows.append([name, *cells, f"{100 * p.sigma:.2g} %"])
    if not rows:
        return ""
    header = ("method", "E", "A", "alpha", "B", "beta", "residual")
    about = "Huber loss of log residuals over all points of a method."
    return html.section(
        "L(N, D) = E + A / N^alpha + B / D^beta", html.note(about), html.table(header, rows, text=True)
    )


def _notes_section(study: Study) -> str:
    notes = [f"{name}: {note}" for name, fit in study.methods.items() for note in fit.notes]
    notes += [
        "Intervals are bootstrap intervals of the losses' noise alone: they know nothing of learning rates "
        "that were not tuned, of data that repeat, or of a law that changes beyond the budgets.",
        "An interval that says open is not closed by these points: more sizes or seeds close it.",
    ]
    return html.section("How to read this", "".join(html.note(note) for note in notes))


def _points_table(study: Study) -> str:
    header = ("method", "budget", "FLOPs", "parameters", "tokens", "tokens per parameter", "loss")
    rows = [
        [
            p.method,
            scientific(p.budget),
            scientific(p.flops),
            si(p.params),
            si(p.tokens),
            f"{p.tokens / p.params:.3g}" if math.isfinite(p.tokens) else "–",
            number(p.loss),
        ]
        for p in study.points
    ]
    return html.table(header, rows)
