"""From runs to a table: means, spreads, what may be claimed. Pure functions of the plan and the outcomes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from lowrise.compare.about import about
from lowrise.compare.budget import INFERENCE_ELEMENT
from lowrise.compare.notes import notes, power_lines
from lowrise.compare.outcomes import RunSpec
from lowrise.compare.plan import AXES, Plan, Recipe, RunKey
from lowrise.compare.published import beside
from lowrise.compare.rows import Comparison, Row
from lowrise.compare.rules import Difference, Side, differences, rules
from lowrise.compare.statistics import Statistic
from lowrise.compare.tuning import Outcomes, Tuning, chosen_runs, tune
from lowrise.config.identity import flatten
from lowrise.files import is_known

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
_SECONDS = "train_seconds"  # updates alone, as tokens_per_second counts


def aggregate(plan: Plan, specs: Mapping[RunKey, RunSpec[RunKey]], outcomes: Outcomes) -> Comparison:
    """Everything that the files of a comparison say about its results."""
    tunings = {recipe.label: tune(plan, recipe.label, outcomes) for recipe in plan.recipes}
    rows = [_row(plan, recipe, tunings[recipe.label], outcomes) for recipe in plan.recipes]
    judged = differences(plan, [_side(row, tunings[row.label]) for row in rows])
    finished = tuple(
        replace(row, difference=difference, ratios=_ratios(row, rows[0]))
        for row, difference in zip(rows, judged, strict=True)
    )
    runs = tuple(_run(plan, key, spec, outcomes, tunings[key.recipe]) for key, spec in sorted(specs.items()))
    settings = differing_settings({recipe.label: recipe.config for recipe in plan.recipes})
    return Comparison(
        plan.allowance,
        finished,
        runs,
        settings,
        notes(plan, finished, tunings, settings),
        rules(plan),
        about(plan),
        power_lines(plan, finished),
        beside(plan, {row.label: row.val_perplexity.mean for row in finished}),
    )


def _side(row: Row, tuning: Tuning) -> Side:
    tuned = len({key.lr_factor for key in tuning.keys}) > 1
    return Side(row.label, row.losses, tuning.edges, tuned, row.lost_seeds, row.waiting)


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
        best=_best(recipe, tuning) if tuning.best else None,
        val_loss=over_seeds("val_loss"),
        val_perplexity=over_seeds("val_perplexity"),
        val_bits_per_byte=over_seeds("val_bits_per_byte"),
        costs=_costs(median) | {_SECONDS: _median_seconds(summaries)},
        completed=count("completed"),
        diverged=count("diverged"),
        failed=count("failed"),
        waiting=sum(1 for key in keys if key not in outcomes),
        lost_seeds=sum(1 for key in chosen if key in outcomes and outcomes[key].status != "completed"),
        losses={
            key.seed: float(loss)
            for key in chosen
            if key in outcomes and (loss := outcomes[key].val_loss) is not None
        },
        difference=Difference("undecided"),
    )


def _costs(median: Callable[[str], float | None]) -> dict[str, float | None]:
    """What the runs cost, and the bytes that the weights of the model take when it is used."""
    costs = {key: median(key) for key in _COSTS}
    params = costs["params_total"]
    return costs | {"inference_bytes": None if params is None else INFERENCE_ELEMENT * params}


def _best(recipe: Recipe, tuning: Tuning) -> dict[str, Any]:
    """The chosen point: each axis with its value, factor, and whether it was tuned."""
    assert tuning.best is not None
    factors = tuning.best.factors
    best: dict[str, Any] = {"edges": list(tuning.edges), "extensions": tuning.extensions}
    for axis in AXES:
        best[axis] = recipe.at(axis, factors[axis])
        best[f"{axis}_factor"] = factors[axis]
        best[f"{axis}_tuned"] = len({key.factors[axis] for key in tuning.keys}) > 1
    return best


def _median_seconds(summaries: Sequence[Mapping[str, Any]]) -> float | None:
    found = [
        summary["tokens"] / summary["tokens_per_second"]
        for summary in summaries
        if is_known(summary.get("tokens")) and is_known(summary.get("tokens_per_second"))
    ]
    return statistics.median(found) if found else None


def _ratios(row: Row, first: Row) -> dict[str, float | None]:
    def divide(a: float | None, b: float | None) -> float | None:
        return a / b if a is not None and b else None

    ratios = {key: divide(row.costs[key], first.costs[key]) for key in row.costs}
    return {"val_perplexity": divide(row.val_perplexity.mean, first.val_perplexity.mean), **ratios}


def _run(
    plan: Plan, key: RunKey, spec: RunSpec[RunKey], outcomes: Outcomes, tuning: Tuning
) -> dict[str, Any]:
    outcome = outcomes.get(key)
    return {
        "name": spec.name,
        **asdict(key),
        **{axis: plan.recipe(key.recipe).at(axis, factor) for axis, factor in key.factors.items()},
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
    flat = {label: flatten(config, empty=True) for label, config in configs.items()}
    keys = dict.fromkeys(key for one in flat.values() for key in one)
    values = {key: {label: one.get(key) for label, one in flat.items()} for key in keys}
    return {key: by for key, by in values.items() if any(v != next(iter(by.values())) for v in by.values())}
