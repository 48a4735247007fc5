"""The words of a command line as a dataclass: what `tyro` reads, and what it would take in silence or refuse
without a hint.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
import typing
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import FlagConversionOff, Positional

from lowrise.errors import UsageError
from lowrise.flag_values import UNKNOWN, Flag, options_of
from lowrise.names import nearest_name

_STYLE = (FlagConversionOff,)
_POSITIONAL = typing.get_args(Positional[int])[1:]
_HELP = ("-h", "--help")


def parse(kind: type, words: Sequence[str], name: str, default: Any = None, about: str | None = None) -> Any:
    """Words as a `kind` (with a `default` of a class that depends on them). Lists may be given in several
    pieces.

    Raises `UsageError` for an unknown flag, with the nearest one, for a flag given twice, for values that a
    flag does not take, and for what is missing or too many. `--help` ends the process with code 0.
    """
    source = f"lowrise {name}"
    every = list(_flags(type(default) if default is not None else kind, default))
    flags = {flag.name: flag for flag, positional in every if not positional}
    places = [flag for flag, positional in every if positional]
    words = _with_values(kind, list(words))
    before, given = _collected(words, flags, source)
    if not any(word in _HELP for word in words):
        _check(flags, places, before, given, source)
    words = before + [word for key, pieces in given.items() for word in _read(flags[key], pieces)]
    options: dict[str, Any] = {} if default is None else {"default": default}

    def read() -> Any:
        return tyro.cli(
            kind, args=words, prog=source, description=about, use_underscores=True, config=_STYLE, **options
        )

    return _without_frames(read, source)


def _without_frames(read: typing.Callable[[], Any], source: str) -> Any:
    """What tyro reads, or what it refuses as a message of ours: the error that one of our dataclasses raised,
    or the text within tyro's frame."""
    shown = io.StringIO()
    try:
        with redirect_stderr(shown):
            return read()
    except SystemExit as end:
        if end.code != 2:
            raise
        cause: BaseException | None = end
        while cause is not None:
            if isinstance(cause, UsageError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        text = " ".join(re.sub(r"[\u2500-\u257f]+", " ", shown.getvalue()).split())
        raise UsageError(f"{source}: {text}") from None


def _check(
    flags: dict[str, Flag], places: list[Flag], before: list[str], given: dict[str, list[str]], source: str
) -> None:
    """Raise `UsageError` for values that do not fit their flags, and for words and flags that are missing or
    too many."""
    free = list(before)
    for key, pieces in given.items():
        values, others = flags[key].split(_values(pieces))
        flags[key].check(values, source)
        free += others
    stray = next((word for word in free if re.match("-[A-Za-z]", word)), None)
    if stray is not None:
        raise UsageError(f"{source}: there is no flag {stray}; all begin with --. {source} --help lists all.")
    if len(free) > len(places) and not any(place.takes_list for place in places):
        raise UsageError(
            f"{source}: {free[len(places)]!r} is a word too many. {source} --help shows what there is."
        )
    if "" in free and any(Path in options_of(place.kind) for place in places):
        raise UsageError(f"{source}: '' is no path: name one (is a variable unset?).")
    missing = (place for place in places[len(free) :] if place.default is UNKNOWN and not place.takes_list)
    needed = [place.name.upper() for place in missing]  # of a list the command says how many it needs
    needed += [f"--{name}" for name, flag in flags.items() if flag.default is UNKNOWN and name not in given]
    if needed:
        raise UsageError(f"{source} needs {' and '.join(needed)}: {source} --help says what each is.")


def _values(pieces: list[str]) -> list[str]:
    """The words of a flag that are behind it or its `=`."""
    _, equals, value = pieces[0].partition("=")
    return [value, *pieces[1:]] if equals else pieces[1:]


def _read(flag: Flag, pieces: list[str]) -> list[str]:
    """The words of a flag as tyro reads them; a text that begins with a dash is no flag."""
    if len(pieces) == 2 and re.match("-[^-.0-9]", pieces[1]):
        return ["=".join(pieces)]
    if not flag.takes_switch:
        return pieces
    return [re.sub(r"(?i)(?<![^=])(true|false)$", lambda m: m[0].capitalize(), word) for word in pieces]


def _flags(kind: type, value: Any, prefix: str = "") -> Iterator[tuple[Flag, bool]]:
    """Every dotted flag of a dataclass, and whether it is a positional word. A `value` tells the classes of
    its sections, where these depend on it."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, own = hints[field.name], getattr(value, field.name, None)
        section = type(own) if own is not None else hint
        if dataclasses.is_dataclass(section):
            nameless = any(getattr(extra, "name", None) == "" for extra in _extras(hint))
            yield from _flags(section, own, prefix if nameless else f"{prefix}{field.name}.")
        else:
            default = _default(field) if value is None else own
            is_positional = any(extra in _POSITIONAL for extra in _extras(hint))
            yield Flag(f"{prefix}{field.name}", hint, default), is_positional


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return UNKNOWN if field.default_factory is dataclasses.MISSING else field.default_factory()


def _with_values(kind: type, words: list[str]) -> list[str]:
    """`--json` as `--json True`, for the switches of a command itself."""
    names = [field.name for field in dataclasses.fields(kind) if field.type in (bool, "bool")]
    switches = {f"--{name.replace('_', mark)}" for name in names for mark in "_-"}
    filled: list[str] = []
    for word, following in itertools.pairwise([*words, ""]):
        filled.append(word)
        if word in switches and following.lower() not in ("true", "false"):
            filled.append("True")
    return filled


def _extras(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__metadata__", ())


def _collected(
    words: list[str], flags: dict[str, Flag], source: str
) -> tuple[list[str], dict[str, list[str]]]:
    """The words before all flags, and each flag with what follows it, the pieces of a list together. Refuses
    unknown flags and other repetitions."""
    before: list[str] = []
    given: dict[str, list[str]] = {}
    place = before
    for word in words:
        flag, equals, value = word.partition("=")
        key = flag[2:].replace("-", "_")
        if not flag.startswith("--") or key in ("", "help") or key.startswith("tyro_"):
            place.append(word)
            continue
        if key not in flags:
            near = nearest_name(key, flags)
            hint = f"; the nearest is --{near}" if near else ""
            raise UsageError(f"{source}: there is no flag --{key}{hint}. {source} --help lists all.")
        whole = not flags[key].takes_list  # a value that begins with a dash stays where it is
        if key in given and whole:
            raise UsageError(f"{source}: --{key} is given twice, and takes one value: give it once.")
        place = given.setdefault(key, [word if whole else f"--{key}"])
        if equals and not whole:
            place.append(value)
    return before, given
