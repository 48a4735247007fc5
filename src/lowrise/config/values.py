"""Plain values into typed ones, with an error message for what does not fit."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

from lowrise.errors import UsageError


def coerce(value: Any, kind: Any, source: str, where: str) -> Any:
    """`value` as `kind`: integers pass as floats and lists as tuples, nothing else is converted."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        for option in inner:
            try:
                return coerce(value, option, source, where)
            except UsageError:
                continue
    elif origin is Literal:
        if value in inner:
            return value
    elif kind == tuple[str, ...] and isinstance(value, str):
        return (value,)
    elif origin is tuple and isinstance(value, list | tuple):
        kinds = [inner[0]] * len(value) if len(inner) == 2 and inner[1] is Ellipsis else list(inner)
        if len(kinds) == len(value):
            return tuple(
                coerce(v, k, source, f"{where}[{i}]")
                for i, (v, k) in enumerate(zip(value, kinds, strict=True))
            )
    elif origin is dict and isinstance(value, Mapping):
        return {str(k): coerce(v, inner[1], source, f"{where}.{k}") for k, v in value.items()}
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif (kind is types.NoneType or kind is None) and value is None:
        return None
    elif isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise UsageError(f"{source}: {where} = {value!r} should be {_describe(kind)}.")


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(v) for v in typing.get_args(kind))
    names = {
        int: "an integer",
        float: "a number",
        str: "a string",
        bool: "true or false",
        types.NoneType: "unset",
    }
    if typing.get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(kind))
    return names.get(kind, str(kind))


def share_or_count(value: float, total: int) -> int:
    """A number of updates given as a share of all (below 1) or as the number itself."""
    return round(value * total) if value < 1 else round(value)


def set_dotted(values: dict[str, Any], key: str, value: Any, only_if_absent: bool = False) -> None:
    *tables, last = key.split(".")
    for table in tables:
        inner = values.setdefault(table, {})
        if not isinstance(inner, dict):
            raise UsageError(
                f"{key} cannot be set: {table} = {inner!r} is a value, and [{table}] should be a table."
            )
        values = inner
    if not (only_if_absent and last in values):
        values[last] = value
