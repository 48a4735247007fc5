"""From runs to a table: means, spreads, what may be claimed. Pure functions of the plan and the outcomes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lowrise.compare.plan import RULES, Plan, Recipe, RunKey, RunSpec, scaled
from lowrise.compare.tuning import Outcomes, Tuning, chosen_runs, tune
from lowrise.files import is_known
from lowrise.report.formatting import (
    UNKNOWN,
    learning_rate,
    milliseconds,
    ratio,
    scientific,
    si,
    with_uncertainty,
)
from lowrise.report.formatting import bytes_ as show_bytes
from lowrise.report.run_report import flatten

CONFIDENCE = 0.95
_COSTS = (
    "params_total",
    "params_non_embedding",
    "train_flops",
    "tokens",
    "tokens_per_second",
    "optimizer_step_ms",
    "state_bytes_measured",
    "peak_memory_bytes",
)


@dataclass(frozen=True)
class Statistic:
    """`n` values, their mean, and their sample standard deviation (None below two values)."""

    values: tuple[float, ...]
    mean: float | None
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[object]) -> Statistic:
        known = tuple(float(value) for value in values if is_known(value))
        return cls(
            known,
            statistics.fmean(known) if known else None,
            statistics.stdev(known) if len(known) > 1 else None,
        )

    @property
    def n(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Difference:
    """Mean validation loss against the first recipe's, with its Welch interval; `verdict` by `RULES`."""

    verdict: str
    mean: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """One recipe of the table. Costs are medians over the runs at the chosen learning rate."""

    label: str
    method: str
    best: dict[str, Any] | None
    val_loss: Statistic
    val_perplexity: Statistic
    val_bits_per_byte: Statistic
    costs: dict[str, float | None]
    completed: int
    diverged: int
    failed: int
    waiting: int
    lost_seeds: int
    difference: Difference
    ratios: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """The whole result: rows in the order of the recipes, every run, and what a reader must know."""

    budget: str
    rows: tuple[Row, ...]
    runs: tuple[dict[str, Any], ...]
    settings: dict[str, dict[str, Any]]
    notes: tuple[str, ...]
    rules: dict[str, str]


def welch(a: Statistic, b: Statistic) -> tuple[float, float, float]:
    """(difference of means a - b, low, high): the 95% interval of Welch's t test. Needs two values on either
    side.

    Source: B. L. Welch, Biometrika 34 (1947); degrees of freedom by Welch and Satterthwaite.
    """
    from scipy import stats

    if a.mean is None or b.mean is None or a.sd is None or b.sd is None:
        raise ValueError(f"Welch's interval needs two values on either side, not {a.n} and {b.n}.")
    va, vb = a.sd**2 / a.n, b.sd**2 / b.n
    difference = a.mean - b.mean
    if va + vb == 0:
        return difference, difference, difference
    freedom = (va + vb) ** 2 / (va**2 / (a.n - 1) + vb**2 / (b.n - 1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(va + vb)
    return difference, difference - half, difference + half


def compare_losses(row: Row, first: Row) -> Difference:
    """The verdict on `row` against the first recipe: better, worse, no difference shown, or undecided and
    why.
    """
    if row.label == first.label:
        return Difference("reference")
    a, b = row.val_loss, first.val_loss
    if a.mean is None or b.mean is None:
        return Difference("undecided: no result")
    if row.lost_seeds or first.lost_seeds:
        return Difference("undecided: a seed was lost", a.mean - b.mean)
    if a.n < 2 or b.n < 2:
        return Difference("undecided: one seed", a.mean - b.mean)
    mean, low, high = welch(a, b)
    verdict = "better" if high < 0 else "worse" if low > 0 else "no difference shown"
    return Difference(verdict, mean, low, high)


def aggregate(plan: Plan, specs: Mapping[RunKey, RunSpec], outcomes: Outcomes) -> Comparison:
    """Everything that the files of a comparison say about its results."""
    tunings = {recipe.label: tune(plan, recipe.label, outcomes) for recipe in plan.recipes}
    rows = [_row(plan, recipe, tunings[recipe.label], outcomes) for recipe in plan.recipes]
    first = rows[0]
    finished = tuple(
        Row(**{**vars(row), "difference": compare_losses(row, first), "ratios": _ratios(row, first)})
        for row in rows
    )
    runs = tuple(_run(plan, key, spec, outcomes, tunings[key.recipe]) for key, spec in sorted(specs.items()))
    settings = differing_settings({recipe.label: recipe.config for recipe in plan.recipes})
    notes = _notes(plan, finished, tunings, settings)
    return Comparison(str(plan.budget), finished, runs, settings, notes, dict(RULES))


def _row(plan: Plan, recipe: Recipe, tuning: Tuning, outcomes: Outcomes) -> Row:
    chosen = chosen_runs(plan, tuning)
    keys = dict.fromkeys([*tuning.keys, *chosen])
    summaries = [outcomes[k].summary for k in chosen if k in outcomes and outcomes[k].status == "completed"]

    def count(status: str) -> int:
        return sum(1 for key in keys if key in outcomes and outcomes[key].status == status)

    def over_seeds(key: str) -> Statistic:
        return Statistic.of([summary.get(key) for summary in summaries])

    def median(key: str) -> float | None:
        values = over_seeds(key).values
        return statistics.median(values) if values else None

    known = next((o.summary for k in keys if (o := outcomes.get(k)) and o.summary.get("method")), {})
    return Row(
        label=recipe.label,
        method=str(known.get("method", "")),
        best=_best(recipe, tuning, plan) if tuning.best else None,
        val_loss=over_seeds("val_loss"),
        val_perplexity=over_seeds("val_perplexity"),
        val_bits_per_byte=over_seeds("val_bits_per_byte"),
        costs={key: median(key) for key in _COSTS},
        completed=count("completed"),
        diverged=count("diverged"),
        failed=count("failed"),
        waiting=sum(1 for key in keys if key not in outcomes),
        lost_seeds=sum(1 for key in chosen if key in outcomes and outcomes[key].status != "completed"),
        difference=Difference("undecided: no result"),
    )


def _best(recipe: Recipe, tuning: Tuning, plan: Plan) -> dict[str, Any]:
    assert tuning.best is not None
    best = tuning.best
    return {
        "lr": scaled(recipe.lr, best.lr_factor),
        "lr_factor": best.lr_factor,
        "other_lr": None if recipe.other_lr is None else scaled(recipe.other_lr, best.other_lr_factor),
        "other_lr_factor": best.other_lr_factor,
        "edges": list(tuning.edges),
        "extensions": tuning.extensions,
        "tuned": len(tuning.keys) > 1,
        "other_tuned": len(plan.other_lr_factors) > 1,
    }


def _ratios(row: Row, first: Row) -> dict[str, float | None]:
    def divide(a: float | None, b: float | None) -> float | None:
        return a / b if a is not None and b else None

    ratios = {key: divide(row.costs[key], first.costs[key]) for key in _COSTS}
    return {"val_perplexity": divide(row.val_perplexity.mean, first.val_perplexity.mean), **ratios}


def _run(plan: Plan, key: RunKey, spec: RunSpec, outcomes: Outcomes, tuning: Tuning) -> dict[str, Any]:
    outcome = outcomes.get(key)
    return {
        "name": spec.name,
        **asdict(key),
        "lr": scaled(plan.recipe(key.recipe).lr, key.lr_factor),
        "grid": key in tuning.keys,
        "chosen": key in chosen_runs(plan, tuning),
        "status": outcome.status if outcome else "waiting",
        "val_loss": outcome.val_loss if outcome else None,
        "error": outcome.error if outcome else "",
        "config_hash": spec.config_hash,
        "settings": spec.overrides,
        "steps": spec.steps,
        "summary": outcome.summary if outcome else {},
    }


def differing_settings(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Dotted keys whose values are not the same in every recipe: key -> recipe -> value (None: not set)."""
    flat = {label: flatten(dict(config)) for label, config in configs.items()}
    keys = dict.fromkeys(key for one in flat.values() for key in one)
    values = {key: {label: one.get(key) for label, one in flat.items()} for key in keys}
    return {key: by for key, by in values.items() if any(v != next(iter(by.values())) for v in by.values())}


def _notes(
    plan: Plan, rows: Sequence[Row], tunings: Mapping[str, Tuning], settings: Mapping[str, Any]
) -> tuple[str, ...]:
    notes = list(RULES.values())
    for row in rows:
        if row.best and row.best["edges"]:
            where = " and ".join(row.best["edges"])
            notes.append(f"{row.label}: the best learning rate lies at an edge of its grid ({where} tried).")
        elif row.best and not row.best["tuned"]:
            notes.append(f"{row.label}: one learning rate only, so it was not tuned here.")
        if row.best and row.best["extensions"]:
            notes.append(f"{row.label}: the grid was extended {row.best['extensions']} time(s).")
        if row.lost_seeds:
            notes.append(
                f"{row.label}: {row.lost_seeds} of {len(plan.seeds)} seeds at the chosen learning rate "
                "diverged or "
                "failed; the mean is over the survivors only."
            )
        if row.waiting:
            notes.append(f"{row.label}: {row.waiting} run(s) are still to do; the same command continues.")
        if tunings[row.label].done and row.best is None:
            notes.append(f"{row.label}: no run of its grid completed.")
    data = sorted(key for key in settings if key.startswith("data."))
    if data:
        notes.append(
            f"The recipes differ in {', '.join(data)}: losses per token may not be comparable, bits per "
            "byte are "
            "where the validation text is the same."
        )
    if len({recipe.tokens_per_step for recipe in plan.recipes}) > 1:
        notes.append("The recipes differ in tokens per step, so they took different numbers of steps.")
    return tuple(notes)


def _show_best(row: Row) -> str:
    if row.best is None:
        return UNKNOWN
    marks = [f"×{row.best['lr_factor']:g}", *row.best["edges"]] if row.best["tuned"] else ["not tuned"]
    other = f" / {learning_rate(row.best['other_lr'])}" if row.best["other_tuned"] else ""
    return f"{learning_rate(row.best['lr'])}{other} ({', '.join(marks)})"


def _show_runs(row: Row) -> str:
    counts = {"ok": row.completed, "diverged": row.diverged, "failed": row.failed, "to do": row.waiting}
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "none"


def _show_difference(row: Row) -> str:
    difference = row.difference
    if difference.mean is None:
        return UNKNOWN
    interval = f" [{difference.low:+.4f}, {difference.high:+.4f}]" if difference.low is not None else ""
    return f"{difference.mean:+.4f}{interval}"


def _show_loss(row: Row) -> str:
    shown = with_uncertainty(row.val_loss.mean, row.val_loss.sd)
    return f"{shown} (n={row.val_loss.n})" if row.val_loss.n else shown


def _show(statistic: Statistic) -> str:
    return with_uncertainty(statistic.mean, statistic.sd)


Column = tuple[str, Callable[[Row], str]]

QUALITY: tuple[Column, ...] = (
    ("recipe", lambda row: row.label if row.method in ("", row.label) else f"{row.label} ({row.method})"),
    ("best lr", _show_best),
    ("val loss", _show_loss),
    ("perplexity", lambda row: _show(row.val_perplexity)),
    ("bits/byte", lambda row: _show(row.val_bits_per_byte)),
    ("difference from first [95%]", _show_difference),
    ("verdict", lambda row: row.difference.verdict),
    ("runs", _show_runs),
)
COST: tuple[Column, ...] = (
    ("params", lambda row: si(row.costs["params_total"])),
    ("non-embedding", lambda row: si(row.costs["params_non_embedding"])),
    ("FLOPs", lambda row: scientific(row.costs["train_flops"])),
    ("tokens", lambda row: si(row.costs["tokens"])),
    ("tokens/s", lambda row: si(row.costs["tokens_per_second"])),
    ("optimizer step", lambda row: milliseconds(row.costs["optimizer_step_ms"])),
    ("optimizer state", lambda row: show_bytes(row.costs["state_bytes_measured"])),
    ("peak memory", lambda row: show_bytes(row.costs["peak_memory_bytes"])),
)
RATIOS: tuple[Column, ...] = (
    QUALITY[0],
    ("perplexity", lambda row: ratio(row.ratios["val_perplexity"])),
    ("params", lambda row: ratio(row.ratios["params_total"])),
    ("non-embedding", lambda row: ratio(row.ratios["params_non_embedding"])),
    ("FLOPs", lambda row: ratio(row.ratios["train_flops"])),
    ("tokens/s", lambda row: ratio(row.ratios["tokens_per_second"])),
    ("optimizer step", lambda row: ratio(row.ratios["optimizer_step_ms"])),
    ("optimizer state", lambda row: ratio(row.ratios["state_bytes_measured"])),
    ("peak memory", lambda row: ratio(row.ratios["peak_memory_bytes"])),
)


def cells(comparison: Comparison, columns: Sequence[Column]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) as text."""
    return [name for name, _ in columns], [[show(row) for _, show in columns] for row in comparison.rows]
