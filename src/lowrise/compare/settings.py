"""Factors and settings as they are typed: `--lr-factors 0.5,1,2`, `--set key.sub=value`."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from lowrise.errors import UsageError

STEPS_KEY = "train.steps"
SEED_KEY = "seed"
_OWNED = {STEPS_KEY: "--budget", SEED_KEY: "--seeds and --first-seed"}


def parse_factors(text: str, option: str) -> tuple[float, ...]:
    """`"0.5,1,2"` -> (0.5, 1.0, 2.0), ascending, each once. Raises `UsageError` for anything but
    positive numbers.
    """
    try:
        factors = sorted({float(part) for part in text.split(",")})
    except ValueError:
        factors = []
    if not factors or not all(math.isfinite(factor) and factor > 0 for factor in factors):
        raise UsageError(
            f"{option} {text!r} is not a list of positive numbers. Write for example {option} 0.5,1,2."
        )
    return tuple(factors)


def parse_settings(
    settings: Sequence[str], owned: Mapping[str, str] | None = None
) -> tuple[tuple[str, Any], ...]:
    """`("train.steps=3", "data.corpus=wiki")` -> pairs with TOML values; what is no TOML value is a string.

    Raises `UsageError` where there is no `=`, and for the keys that the comparison itself decides (`owned`:
    key -> the flag to use).
    """
    owned = _OWNED if owned is None else owned
    pairs: list[tuple[str, Any]] = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {setting!r} has no key before an '='. Write --set key.sub=value.")
        if key in owned:
            raise UsageError(
                f"--set {key} would break the comparison, which decides it itself. Use {owned[key]}."
            )
        if key in dict(pairs):
            raise UsageError(f"--set {key} is given twice: give it once.")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        pairs.append((key, value))
    return tuple(pairs)
