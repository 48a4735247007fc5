"""What a command keeps in its folder: plans, and dataclasses from what `asdict` and JSON made of them."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from lowrise.errors import LowriseError
from lowrise.files import read_json, write_whole

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


def write_stored(path: Path, text: str) -> None:
    """Write a file of a command's folder whole. Raises `LowriseError` with the remedy."""
    try:
        write_whole(path, text + "\n")
    except OSError as error:
        raise LowriseError(f"{path} cannot be written: {error.strerror}. Choose another --out.") from error


def keep_plan(path: Path, body: Mapping[str, Any], **more: Any) -> int:
    """Write a plan before any run, with its date and what else belongs to it; a different earlier one is kept
    beside it as `plan-1.json`, ... Returns how many are kept. `body`: plain values, which make plans equal.
    """
    try:
        earlier = read_json(path)
    except FileNotFoundError:
        earlier = None
    except (OSError, ValueError):
        earlier = {}  # damaged: another plan, and kept like one
    kept = len(list(path.parent.glob("plan-*.json")))
    if earlier is not None:
        if isinstance(earlier, dict) and {key: earlier.get(key) for key in body} == body:
            return kept
        kept += 1
        path.replace(path.with_name(f"plan-{kept}.json"))
    write_stored(path, json.dumps({"written": today(), **body, **more}, indent=1))
    return kept


def today() -> str:
    """The date and time as a plan has them."""
    return datetime.now(UTC).isoformat(timespec="seconds")


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
