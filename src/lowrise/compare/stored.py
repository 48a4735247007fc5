"""Dataclasses from what `asdict` and JSON made of them, by the types of their fields."""

from __future__ import annotations

import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from lowrise.errors import LowriseError
from lowrise.files import read_json

T = TypeVar("T")


def read_stored(path: Path, command: str) -> dict[str, Any]:
    """The object in a file that `command` has written. Raises `LowriseError` where it holds none."""
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise LowriseError(
            f"{path} cannot be read ({error}): {command} with the same folder writes it."
        ) from error
    if not isinstance(document, dict):
        raise LowriseError(f"{path} holds no object: {command} with the same folder writes it again.")
    return document


def stored(kind: type[T], value: Any, path: Path) -> T:
    """The dataclass `kind` that an object in the file `path` was made of; other keys of it are left alone.
    Raises `LowriseError` where something is missing.
    """
    try:
        return typing.cast(T, _made(kind, value))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LowriseError(
            f"{path} is damaged or of another version of lowrise ({error!r}): the command that wrote it "
            "writes it again, and repeats no run that is finished."
        ) from error


def _made(kind: Any, value: Any) -> Any:
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        given = {
            field.name: _made(hints[field.name], value[field.name])
            for field in fields(kind)
            if field.name in value or (field.default is MISSING and field.default_factory is MISSING)
        }
        return kind(**given)  # type: ignore[operator]
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _made(next(one for one in of if one is not type(None)), value)
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError(f"{value!r} is no list")
        return tuple(_made(of[0], one) for one in value)
    if origin is dict:
        return {of[0](key): _made(of[1], one) for key, one in value.items()}
    return value
