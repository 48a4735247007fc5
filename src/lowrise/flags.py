"""The words of a command line as a dataclass: what `tyro` reads, and what it would take in silence or refuse
without a hint.
"""

from __future__ import annotations

import dataclasses
import itertools
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import tyro
from tyro.conf import FlagConversionOff, Positional

from lowrise.errors import UsageError
from lowrise.names import nearest_name

_STYLE = (FlagConversionOff,)
_POSITIONAL = typing.get_args(Positional[int])[1:]


def parse(kind: type, words: Sequence[str], name: str, default: Any = None, about: str | None = None) -> Any:
    """Words as a `kind` (with a `default` of a class that depends on them). Lists may be given in several
    pieces. Raises `UsageError` for an unknown flag, with the nearest one, and for a flag given twice; other
    mistakes end the process with code 2 and tyro's own message.
    """
    lists = dict(_flags(type(default) if default is not None else kind, default))
    words = _collected(list(words), lists, f"lowrise {name}")
    words = [{"true": "True", "false": "False"}.get(word, word) for word in words]
    words = _with_values(kind, words)
    options: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(
        kind,
        args=words,
        prog=f"lowrise {name}",
        description=about,
        use_underscores=True,
        config=_STYLE,
        **options,
    )


def _flags(kind: type, value: Any, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Every dotted flag of a dataclass, and whether it takes a list. A `value` tells the classes of its
    sections, where these depend on it."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, own = hints[field.name], getattr(value, field.name, None)
        if any(extra in _POSITIONAL for extra in _extras(hint)):
            continue
        section = type(own) if own is not None else hint
        if dataclasses.is_dataclass(section):
            nameless = any(getattr(extra, "name", None) == "" for extra in _extras(hint))
            yield from _flags(section, own, prefix if nameless else f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", _takes_list(hint)


def _with_values(kind: type, words: list[str]) -> list[str]:
    """`--json` as `--json True`, for the switches of a command itself."""
    names = [field.name for field in dataclasses.fields(kind) if field.type in (bool, "bool")]
    switches = {f"--{name.replace('_', mark)}" for name in names for mark in "_-"}
    filled: list[str] = []
    for word, following in itertools.pairwise([*words, ""]):
        filled.append(word)
        if word in switches and following not in ("True", "False"):
            filled.append("True")
    return filled


def _extras(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__metadata__", ())


def _takes_list(hint: Any) -> bool:
    if _extras(hint):
        return _takes_list(typing.get_args(hint)[0])
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_takes_list(option) for option in inner)
    return origin in (list, dict) or (origin is tuple and Ellipsis in inner)


def _collected(words: list[str], lists: dict[str, bool], source: str) -> list[str]:
    """The words with the pieces of each list together. Refuses unknown flags and other repetitions."""
    done: list[str] = []
    places: dict[str, list[str]] = {}  # key -> the flag and its values
    place = done
    for word in words:
        flag, equals, value = word.partition("=")
        key = flag[2:].replace("-", "_")
        if not flag.startswith("--") or key in ("", "help") or key.startswith("tyro_"):
            place.append(word)
            continue
        if key not in lists:
            near = nearest_name(key, lists)
            hint = f"; the nearest is --{near}" if near else ""
            raise UsageError(f"{source}: there is no flag --{key}{hint}. {source} --help lists all.")
        if key in places and not lists[key]:
            raise UsageError(f"{source}: --{key} is given twice, and takes one value: give it once.")
        whole = not lists[key]  # a value that begins with a dash stays where it is
        place = places.setdefault(key, [word if whole else f"--{key}"])
        if equals and not whole:
            place.append(value)
    return done + [word for place in places.values() for word in place]
