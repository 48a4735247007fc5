"""The values of flags, held to their kinds before anything is made of them: one message that names the value,
the flag and what it takes."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from lowrise.errors import UsageError

UNKNOWN = object()
"""The default of a flag that must be given."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """What one flag or positional word takes."""

    name: str
    """Dotted, with underscores."""
    kind: Any
    default: Any = UNKNOWN

    @property
    def takes_list(self) -> bool:
        """Whether any number of words may follow."""
        return any(get_origin(kind) in (list, dict) or _is_open(kind) for kind in options_of(self.kind))

    @property
    def takes_switch(self) -> bool:
        """Whether true and false are values of its own, and not text."""
        return bool in options_of(self.kind)

    def split(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """The words behind the flag that are its values, and those that must be positional."""
        if self.takes_list:
            return list(words), []
        pairs = [len(get_args(kind)) for kind in options_of(self.kind) if get_origin(kind) is tuple]
        count = max([1, *pairs])
        return list(words[:count]), list(words[count:])

    def check(self, values: Sequence[str], source: str) -> None:
        """Raise `UsageError` for values that are none of its kinds. `source`: the command."""
        kinds = options_of(self.kind)
        given = " ".join(repr(value if len(value) < 80 else f"{value[:60]}...") for value in values)
        if "" in values and (Path in kinds or self.name in ("out", "run")):
            raise UsageError(f"{source}: --{self.name} '' is empty: name a place (is a variable unset?).")
        if any(_fits(kind, values) for kind in kinds):
            if not {str, Path} & {*kinds} and any(map(_is_beyond, values)):
                raise UsageError(
                    f"{source}: --{self.name} {given} cannot be: numbers are finite, integers have 64 bits."
                )
            return
        wanted = " or ".join(dict.fromkeys(map(_described, kinds)))
        if not values:
            raise UsageError(f"{source}: --{self.name} needs a value: {wanted}{self._example()}.")
        raise UsageError(f"{source}: --{self.name} {given} cannot be: it takes {wanted}{self._example()}.")

    def _example(self) -> str:
        """The default as it would be written, where that is a value at all."""
        default = self.default
        if isinstance(default, tuple | list):
            default = " ".join(map(str, default))
        if default is UNKNOWN or default is None or default == "" or isinstance(default, dict):
            return ""
        return f", for example --{self.name} {default}"


def options_of(kind: Any) -> list[Any]:
    """The alternatives of a kind, without what is annotated to it."""
    if get_origin(kind) is typing.Annotated:
        return options_of(get_args(kind)[0])
    if get_origin(kind) in (typing.Union, types.UnionType):
        return [one for option in get_args(kind) for one in options_of(option)]
    return [kind]


def _is_open(kind: Any) -> bool:
    return get_origin(kind) is tuple and Ellipsis in get_args(kind)


_READERS: dict[Any, Callable[[str], Any]] = {int: int, float: float, str: str, Path: Path}
_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    str: "a text",
    Path: "a path",
    bool: "true or false",
    types.NoneType: "None",
}


def _fits(kind: Any, values: Sequence[str]) -> bool:
    """Whether the words are a value of this kind, one alternative; of a kind that is not known here too."""
    origin, inner = get_origin(kind), get_args(kind)
    if _is_open(kind) or origin is list:
        return all(_fits_any(inner[0], value) for value in values)
    if origin is dict:
        keys, rest = values[::2], values[1::2]
        return len(keys) == len(rest) and all(_fits_any(inner[1], value) for value in rest)
    if origin is tuple:
        return len(values) == len(inner) and all(map(_fits_any, inner, values))
    if len(values) != 1:
        return False
    (value,) = values
    if origin is typing.Literal:
        return value in map(str, inner)
    if kind is bool:
        return value.lower() in ("true", "false")
    if kind is types.NoneType:
        return value == "None"
    try:
        _READERS.get(kind, str)(value)
    except ValueError:
        return False
    return True


def _is_beyond(value: str) -> bool:
    """Whether this is a number that no machine word holds."""
    try:
        return abs(int(value)) >= 2**64
    except ValueError:
        pass
    try:
        return not math.isfinite(float(value))
    except ValueError:
        return False


def _fits_any(kind: Any, value: str) -> bool:
    return any(_fits(option, [value]) for option in options_of(kind))


def _described(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin is dict:
        of = " or ".join(map(_described, options_of(inner[1])))
        return f"pairs of a name and {of}"
    if _is_open(kind) or origin is list:
        return " or ".join(map(_described, options_of(inner[0]))) + ", one or several"
    if origin is tuple:
        return f"{len(inner)} values, each " + " or ".join(map(_described, options_of(inner[0])))
    return _WORDS.get(kind, str(kind))
