"""The HTML page of a sweep: the best trial, heat maps, parallel coordinates, every key, all trials."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

from lowrise.compare.about import model_in_words, text_in_words
from lowrise.files import is_known
from lowrise.report import html
from lowrise.report.charts import Series, chart
from lowrise.report.formatting import number, si
from lowrise.report.heatmap import heatmap
from lowrise.report.parallel import Line, parallel_coordinates
from lowrise.report.ticks import LOG_FROM
from lowrise.sweep.plan import SweepPlan
from lowrise.sweep.space import Dimension, shown, words_of
from lowrise.sweep.trials import Trial, best_of

GOALS = {"val_loss": "validation loss (nats per token)", "val_bits_per_byte": "validation bits per byte"}
_STRONG = 10  # one line of so many is drawn strongly
_MAPS = 3  # heat maps at most
_CELLS = 12  # values of a key at most, to be rows or columns of a heat map
_PARTS = 5  # of a range that was drawn from


def to_html(
    plan: SweepPlan, trials: Sequence[Trial], notes: Sequence[str], environment: dict[str, Any]
) -> str:
    """The page, from its title to the environment."""
    best, goal = best_of(trials), GOALS[plan.goal]
    title = f"Sweep: {', '.join(dimension.key for dimension in plan.space)}"
    body = [html.heading(title, f"{plan.search} search over {plan.recipe}")]
    lost = [f"{count} {status}" for status in ("failed", "waiting") if (count := _count(trials, status))]
    if lost:
        body.append(html.warning(f"Not every trial has a result: {', '.join(lost)}."))
    if best is not None:
        tiles = [(goal, number(best.value), True)]
        tiles += [(key, shown(value), False) for key, value in best.settings.items()]
        body.append(html.section("Best trial", html.tiles(tiles)))
    body.append(html.section("What was tried", html.facts(_about(plan, trials))))
    maps = _maps(plan, trials)
    if maps:
        about = "The best trial of each cell; the strongest colour is the lowest, framed the best."
        body.append(html.section("Heat maps", html.note(about), *maps))
    if len(plan.space) > 1:
        strong = max(1, sum(trial.value is not None for trial in trials) // _STRONG)
        figure = parallel_coordinates(
            [*(dimension.key for dimension in plan.space), plan.goal],
            [Line(f"trial {t.number}", (*t.settings.values(), t.value)) for t in trials],
            best=strong,
        )
        about = f"A line for each trial; strong: the best {strong if strong > 1 else 'one'}."
        body.append(html.section("Parallel coordinates", html.note(about), figure))
    body.append(html.section("Each key by itself", html.pair(*_keys(plan, trials, goal))))
    if plan.search != "grid":
        body.append(html.section("The search", _search(trials, goal)))
    body.append(html.section("How to read this", "".join(html.note(note) for note in notes)))
    header = ("trial", "settings", plan.goal, "status", "error")
    listed = [
        [str(t.number), words_of(t.settings), number(t.value), t.status, t.error.split("\n")[0]]
        for t in trials
    ]
    table = html.table(header, listed, text=True)
    body.append(html.section("Trials", html.folded(f"All {len(listed)} trials", table)))
    body.append(html.section("Environment", html.facts(environment.items())))
    return html.page(title, body, "lowrise sweep report")


def _count(trials: Sequence[Trial], status: str) -> int:
    return sum(trial.status == status for trial in trials)


def _about(plan: SweepPlan, trials: Sequence[Trial]) -> list[tuple[str, str]]:
    statuses = ("completed", "diverged", "failed", "refused", "waiting")
    counts = ", ".join(f"{n} {status}" for status in statuses if (n := _count(trials, status)))
    tokens = next((t.summary.get("tokens") for t in trials if is_known(t.summary.get("tokens"))), None)
    facts = {
        "model": model_in_words(plan.config),
        "text": text_in_words(plan.config),
        "length of a run": str(plan.budget) if plan.budget else f"{si(tokens)} tokens",
        "keys": "; ".join(map(str, plan.space)),
        "trials": f"{len(trials)} ({counts}), {len(plan.seeds)} seed(s) each",
    }
    return [(what, value) for what, value in facts.items() if value]


def _maps(plan: SweepPlan, trials: Sequence[Trial]) -> list[str]:
    """One for each pair of keys, at most three, the best over all others. Drawn ranges are cut in parts."""
    scales = [_Scale.of(dimension, trials, drawn=plan.search != "grid") for dimension in plan.space]
    usable = [scale for scale in scales if 1 < len(scale.names) <= _CELLS]
    figures = []
    for across, down in list(combinations(usable, 2))[:_MAPS]:
        cells: dict[tuple[int, int], float | str] = {}
        for trial in trials:
            place = across.place(trial), down.place(trial)
            there = cells.get(place)
            if trial.value is None:
                cells.setdefault(place, trial.status)
            elif there is None or isinstance(there, str) or trial.value < there:
                cells[place] = trial.value
        figures.append(
            heatmap(
                cells,
                columns=across.names,
                rows=down.names,
                x_label=across.dimension.key,
                y_label=down.dimension.key,
                value_label=GOALS[plan.goal],
            )
        )
    return figures


@dataclass(frozen=True)
class _Scale:
    """The columns or rows of a heat map: values, or the parts of a range."""

    dimension: Dimension
    names: tuple[str, ...]
    values: tuple[Any, ...]
    """The values; of a range that was drawn from the upper ends of its parts."""
    is_cut: bool

    @classmethod
    def of(cls, dimension: Dimension, trials: Sequence[Trial], *, drawn: bool) -> _Scale:
        if not (dimension.is_range and drawn):
            values = _values(dimension, trials)
            return cls(dimension, tuple(map(shown, values)), tuple(values), False)
        ends = [dimension.at(i / _PARTS) for i in range(_PARTS + 1)]
        names = tuple(f"{shown(low)} to {shown(high)}" for low, high in pairwise(ends))
        return cls(dimension, names, tuple(ends[1:]), True)

    def place(self, trial: Trial) -> int:
        value = trial.settings[self.dimension.key]
        return bisect_left(self.values, value) if self.is_cut else self.values.index(value)


def _values(dimension: Dimension, trials: Sequence[Trial]) -> list[Any]:
    """The values that were tried: numbers in order, others as they came."""
    found: list[Any] = []
    for trial in trials:
        value = trial.settings[dimension.key]
        if value not in found:
            found.append(value)
    return sorted(found) if all(is_known(value) for value in found) else found


def _keys(plan: SweepPlan, trials: Sequence[Trial], goal: str) -> list[str]:
    """The result over each key: every trial as a point, and the line of the best of each value."""
    figures = []
    for dimension in plan.space:
        points = [(trial.settings[dimension.key], trial.value) for trial in trials if trial.value is not None]
        values = _values(dimension, trials)
        if all(is_known(value) for value in values):
            positive = min(values) > 0
            log = dimension.log or (positive and max(values) >= LOG_FROM * min(values))
            places = dict(zip(values, values, strict=True))
        else:
            log, places = False, {str(value): i for i, value in enumerate(values)}
            points = [(str(value), result) for value, result in points]
        best = {x: min(r for v, r in points if v == x) for x in dict.fromkeys(v for v, _ in points)}
        label = dimension.key
        if places and all(isinstance(place, str) for place in places):
            label += f" ({', '.join(f'{i}: {name}' for name, i in places.items())})"
        series = [Series("trial", [places[v] for v, _ in points], [r for _, r in points], 0, "points")]
        if not dimension.is_range:
            series.insert(0, Series("best", [places[v] for v in best], list(best.values()), 0, "faint"))
        figures.append(
            html.titled(
                dimension.key,
                chart(series, x_label=label, y_label=goal, width=450, height=260, log_x=log, legend=False),
            )
        )
    return figures


def _search(trials: Sequence[Trial], goal: str) -> str:
    """The results in the order of the draws, and the best so far."""
    done = [(trial.number, trial.value) for trial in trials if trial.value is not None]
    so_far, lowest = [], float("inf")
    for _, value in done:
        lowest = min(lowest, value)
        so_far.append(lowest)
    numbers = [float(n) for n, _ in done]
    series = [
        Series("trial", numbers, [value for _, value in done], 0, "points"),
        Series("best so far", numbers, so_far, 1),
    ]
    return chart(series, x_label="trial", y_label=goal, height=260)
