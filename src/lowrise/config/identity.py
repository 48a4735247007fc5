"""What each key of a configuration is to the result, and so which may change between two starts of a run.

A key takes the kind of its longest prefix in `KINDS`; every key has one (a test holds it).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from typing import Any

from lowrise.data.config import HOW_NOT_WHAT


class Kind(Enum):
    """What another value of a key means for a run that has begun."""

    MATHEMATICS = "other numbers, in exact arithmetic too: refused"
    ARITHMETIC = "another rounding: accepted where it comes out the same on the device"
    COURSE = "other learning rates over time, another end: accepted where the updates done had the same"
    TEXT = "where and how text is found: accepted where the prepared tokens are the same"
    ORIGIN = "where first weights lie: accepted where they are the same"
    EXECUTION = "how the same is computed, shown and kept: accepted"


KINDS: dict[str, Kind] = {
    "method": Kind.MATHEMATICS,
    "seed": Kind.MATHEMATICS,
    "plugin": Kind.EXECUTION,  # where a method is from; what it does is its name and options
    "model": Kind.MATHEMATICS,
    "model.recompute": Kind.EXECUTION,
    "layer": Kind.MATHEMATICS,
    "optimizer": Kind.MATHEMATICS,
    "other": Kind.MATHEMATICS,
    "schedule": Kind.COURSE,
    "transfer": Kind.MATHEMATICS,
    "ema": Kind.COURSE,
    "init": Kind.ORIGIN,
    "data": Kind.TEXT,
    "data.weights": Kind.MATHEMATICS,
    "data.overlong": Kind.MATHEMATICS,
    **{f"data.{name}": Kind.EXECUTION for name in HOW_NOT_WHAT},
    "train.steps": Kind.COURSE,
    "train.global_batch_size": Kind.MATHEMATICS,
    "train.micro_batch_size": Kind.EXECUTION,
    "train.seq_len": Kind.MATHEMATICS,
    "train.grad_clip": Kind.MATHEMATICS,
    "train.per_layer": Kind.MATHEMATICS,
    "train.device": Kind.EXECUTION,
    "train.precision": Kind.ARITHMETIC,
    "train.compile": Kind.EXECUTION,
    "train.threads": Kind.EXECUTION,
    "train.deterministic": Kind.EXECUTION,
    "train.nonfinite_limit": Kind.EXECUTION,
    "parallel": Kind.EXECUTION,
    "eval": Kind.EXECUTION,
    "eval.patience": Kind.COURSE,
    "eval.min_delta": Kind.COURSE,
    "checkpoint": Kind.EXECUTION,
    "log": Kind.EXECUTION,
    "sample": Kind.EXECUTION,
}
"""Dotted prefix -> kind. Whole sections only where every key of them, today's and later ones, is of a kind;
`train` is not one of them, so that a new key has to be thought about."""


def kind_of(key: str) -> Kind:
    """The kind of a dotted key. Raises `KeyError` for one that nobody has classified."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        kind = KINDS.get(".".join(parts[:length]))
        if kind is not None:
            return kind
    raise KeyError(key)


def of_kinds(values: Mapping[str, Any], *kinds: Kind) -> dict[str, Any]:
    """The dotted keys of a configuration's nested values that are of these kinds."""
    return {key: value for key, value in flatten(values).items() if kind_of(key) in kinds}


def digest(values: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that stand for plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


Changes = dict[str, tuple[Any, Any]]
"""Dotted key -> the values before and now; None: unset."""


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *kinds: Kind) -> Changes:
    """The keys of these kinds that differ between two configurations' nested values."""
    old, new = of_kinds(before, *kinds), of_kinds(now, *kinds)
    keys = sorted({*old, *new})
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def told(changed: Mapping[str, tuple[Any, Any]], limit: int = 3) -> str:
    """Differences as a part of a sentence."""
    shown = [f"{key}: {_shown(a)} there, {_shown(b)} here" for key, (a, b) in [*changed.items()][:limit]]
    return "; ".join(shown) + (f"; {len(changed) - limit} more" if len(changed) > limit else "")


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)


def flatten(values: Mapping[str, Any], prefix: str = "", *, empty: bool = False) -> dict[str, Any]:
    """Nested tables as dotted keys. `empty`: an empty table is a value, as pages show it; no hash does."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and (value or not empty):
            flat |= flatten(value, f"{prefix}{key}.", empty=empty)
        else:
            flat[f"{prefix}{key}"] = value
    return flat
