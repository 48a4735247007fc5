"""What a reader must know beside the numbers of a comparison, in sentences."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from lowrise.compare.plan import Plan
from lowrise.compare.rows import Row
from lowrise.compare.rules import rules
from lowrise.compare.statistics import detectable, pooled_sd, sd_interval, seeds_needed
from lowrise.compare.tuning import Tuning
from lowrise.report.formatting import duration, significant

_UNUSED, _OFF_TIME = 0.9, 0.1  # shares of a budget from which a note is due
_FEW = 3  # recipes that are named even where a note is of all


def notes(
    plan: Plan, rows: Sequence[Row], tunings: Mapping[str, Tuning], settings: Mapping[str, Any]
) -> tuple[str, ...]:
    """The rules, then what is particular to these rows."""
    found = list(rules(plan).values())
    said: dict[str, list[str]] = {}
    for row in rows:
        for sentence in _of_row(plan, row, tunings[row.label]):
            said.setdefault(sentence, []).append(row.label)
    found += [f"{_names(labels, rows)}: {sentence}" for sentence, labels in said.items()]
    data = sorted(key for key in settings if key.startswith("data."))
    if data:
        found.append(
            f"The recipes differ in {', '.join(data)}: losses per token may not be comparable, bits per byte "
            "are where the validation text is the same."
        )
    if len({recipe.tokens_per_step for recipe in plan.recipes}) > 1:
        found.append("The recipes differ in tokens per step, so they took different numbers of steps.")
    return tuple(found)


def _names(labels: Sequence[str], rows: Sequence[Row]) -> str:
    """Of whom a note is; of many recipes not each by name."""
    if len(labels) > _FEW and len(labels) == len(rows):
        return "every recipe"
    if len(labels) > _FEW and list(labels) == [row.label for row in rows[1:]]:
        return f"every recipe but {rows[0].label}"
    return ", ".join(labels)


def _of_row(plan: Plan, row: Row, tuning: Tuning) -> list[str]:
    """Sentences without their subject, so that those of several recipes can be one."""
    found = []
    if row.difference.because:
        found.append(f"undecided, because {row.difference.because}.")
    if row.best and row.best["edges"]:
        where = " and ".join(row.best["edges"])
        found.append(f"the best point lies at an edge of its grid ({where} tried).")
    if row.best and not row.best["lr_tuned"]:
        found.append("one learning rate only, so it was not tuned here.")
    if row.best and row.best["extensions"]:
        found.append(f"the grid was extended {row.best['extensions']} time(s).")
    if row.lost_seeds:
        found.append(
            f"{row.lost_seeds} of {len(plan.seeds)} seeds at the chosen learning rate diverged "
            "or failed; the mean is over the survivors only."
        )
    if row.waiting:
        found.append(f"{row.waiting} run(s) are still to do; the same command continues.")
    if tuning.done and row.best is None:
        found.append("no run of its grid completed.")
    return found + _of_budget(plan, row)


def _of_budget(plan: Plan, row: Row) -> list[str]:
    """Where a recipe does not use its budget, or takes more time than it."""
    found, recipe = [], plan.recipe(row.label)
    if plan.size is not None and recipe.sized is not None:
        used = recipe.sized.used / plan.size.amount
        if used < _UNUSED and not recipe.sized.is_width:
            found.append(
                f"at {recipe.sized.words} it uses {used:.0%} of the budget of {plan.size.what}; "
                "--size-by width may use more."
            )
    seconds = row.costs.get("train_seconds")
    if plan.budget.unit == "seconds" and seconds and abs(seconds / plan.budget.amount - 1) > _OFF_TIME:
        found.append(
            f"its runs trained for {duration(seconds)} and not {duration(plan.budget.amount)}; "
            "the machine had another speed than when the step was timed."
        )
    return found


def power_lines(plan: Plan, rows: Sequence[Row]) -> tuple[str, ...]:
    """What a comparison of these seeds can see, one sentence for each recipe but the first."""
    return tuple(line for row in rows[1:] if (line := _power_line(plan, row, rows[0])))


def _power_line(plan: Plan, row: Row, first: Row) -> str:
    is_paired, n = plan.test == "paired", len(plan.seeds)
    if is_paired:
        common = [row.losses[seed] - first.losses[seed] for seed in row.losses.keys() & first.losses.keys()]
        spread = (statistics.stdev(common), len(common) - 1) if len(common) > 1 else None
    else:
        spread = pooled_sd([row.val_loss, first.val_loss])
    if spread is None or n < 2 or not spread[0]:
        return ""
    (sd, freedom), comparisons = spread, len(plan.recipes) - 1 if plan.correction == "holm" else 1

    def least(sd: float) -> float:
        return detectable(sd, n, comparisons=comparisons, is_paired=is_paired)

    low, high = (least(bound) for bound in sd_interval(sd, freedom))
    line = (
        f"{row.label} against {first.label}: with {n} seeds a true difference of {significant(least(sd), 2)} "
        f"is seen 8 times in 10 (the spread is itself known from {freedom} degrees of freedom: "
        f"{significant(low, 2)} to {significant(high, 2)})"
    )
    observed = row.difference.mean
    if not observed or abs(observed) >= least(sd):
        return line + "."
    needed = seeds_needed(observed, sd, comparisons=comparisons, is_paired=is_paired)
    seeds = f"about {needed}" if needed else "more than 100"
    return f"{line}; one as small as the observed {observed:+.4f} takes {seeds} seeds."
