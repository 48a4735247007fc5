"""`lowrise compare --plan`: what each recipe would be at the budgets, and what all of it would cost."""

from __future__ import annotations

from lowrise.compare.about import grid_in_words
from lowrise.compare.plan import Plan
from lowrise.console import Console, narrow_table
from lowrise.report.formatting import scientific, si


def show_plan(plan: Plan, console: Console) -> None:
    """A line for each recipe, then the sum. At a budget of seconds no length is known before it is timed."""
    timed = plan.budget.unit == "seconds"
    table = narrow_table()
    table.add_column("recipe", no_wrap=True)
    for name in ("chosen", "used", "steps", "FLOPs of a run"):
        table.add_column(name, justify="right", no_wrap=True)
    for recipe in plan.recipes:
        sized, size = recipe.sized, plan.size
        table.add_row(
            recipe.label,
            "–" if sized is None else sized.words,
            "–"
            if sized is None or size is None
            else f"{size.show(sized.used)} ({sized.used / size.amount:.0%})",
            "timed" if timed else f"{recipe.steps:,}",
            scientific((1 if timed else recipe.steps) * recipe.flops_per_step) + (" a step" if timed else ""),
        )
    runs = plan.grid_points + len(plan.seeds) - 1
    console.print(f"At {plan.allowance}:", style="bold", soft_wrap=True)
    console.print(table)
    for recipe in plan.recipes:
        console.print(f"{recipe.label}: {grid_in_words(plan, recipe)}", style="dim", soft_wrap=True)
    tokens = sum(recipe.steps * recipe.tokens_per_step for recipe in plan.recipes)
    flops = sum(recipe.steps * recipe.flops_per_step for recipe in plan.recipes)
    cost = "" if timed else f", {si(runs * tokens)} tokens and {scientific(runs * flops)} FLOPs"
    more = ", more where a grid grows" if plan.max_extensions else ""
    console.print(
        f"{len(plan.recipes) * runs} runs ({plan.grid_points} grid point(s) and {len(plan.seeds)} seed(s) "
        f"for each recipe){cost}{more}. Nothing was run.",
        soft_wrap=True,
    )
