"""Counts of the recipes that lowrise ships, from shapes alone."""

from __future__ import annotations

import tomllib
from functools import cache

from lowrise.config import from_dict
from lowrise.runs.plan import RunPlan, plan_run
from lowrise.runs.recipes import recipe


@cache
def plan(method: str, size: str) -> RunPlan:
    """Of the recipe METHOD-SIZE."""
    config = from_dict(tomllib.loads(recipe(method, size)))
    return plan_run(config, config.data.vocab_size)


def bytes_in_bfloat16(method: str, size: str) -> float:
    """Bytes of weights and optimizer state at 2 bytes an element; plans count state at 4."""
    counted = plan(method, size)
    return 2 * (counted.params_total + counted.state_bytes / 4)
