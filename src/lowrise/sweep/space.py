"""The space of a sweep: each key with its values or its range, read from `--vary`."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from lowrise.errors import UsageError
from lowrise.files import is_known
from lowrise.report.formatting import learning_rate

_NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\.\.({_NUMBER})((?::[a-z0-9]+)*)\s*")
_EXAMPLE = "Write --vary optimizer.lr=0.01,0.02 or --vary optimizer.lr=1e-3..1e-1:log."
_POINTS, _MOST_POINTS, _DIGITS = 5, 10_000, 4  # of a range in a grid; digits of a drawn number

Settings = dict[str, Any]


@dataclass(frozen=True)
class Dimension:
    """One key. Either `values` are given, or a range from `low` to `high` of integers or real numbers."""

    key: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    points: int = _POINTS

    @property
    def is_range(self) -> bool:
        return not self.values

    def grid(self) -> tuple[Any, ...]:
        """The values that a grid tries."""
        if not self.is_range:
            return self.values
        shares = [i / (self.points - 1) for i in range(self.points)] if self.points > 1 else [0.0]
        return tuple(dict.fromkeys(self.at(share) for share in shares))

    def at(self, share: float) -> Any:
        """The value at a share in [0, 1] of the space, rounded to four digits, or to an integer."""
        if not self.is_range:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        if self.log:
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + (self.high - self.low) * share
        return self.rounded(value)

    def rounded(self, value: float) -> Any:
        """A number of the range as it is tried."""
        if self.whole:
            return min(max(round(value), int(self.low)), int(self.high))
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)

    def ends(self) -> tuple[Any, Any] | None:
        """The smallest and the largest value, where the values are two or more numbers."""
        if self.is_range:
            return (self.rounded(self.low), self.rounded(self.high)) if self.low < self.high else None
        numbers = [value for value in self.values if is_known(value)]
        return (min(numbers), max(numbers)) if len(numbers) == len(self.values) > 1 else None

    def __str__(self) -> str:
        if not self.is_range:
            return f"{self.key}: {', '.join(map(shown, self.values))}"
        kind = "integers" if self.whole else "numbers"
        return f"{self.key}: {kind} from {shown(self.low)} to {shown(self.high)}{', log' if self.log else ''}"


def shown(value: Any) -> str:
    """A value in tables and names."""
    if is_known(value):
        return f"{int(value)}" if float(value).is_integer() and abs(value) < 1e6 else learning_rate(value)
    return str(value)


def parse_space(texts: Sequence[str]) -> tuple[Dimension, ...]:
    """`--vary` as dimensions. Raises `UsageError` with the remedy for what is none."""
    if not texts:
        raise UsageError(f"There is nothing to vary. {_EXAMPLE}")
    space: list[Dimension] = []
    for text in texts:
        key, equals, rest = text.partition("=")
        key = key.strip()
        if not key or not equals or not rest.strip():
            raise UsageError(f"--vary {text!r} has no key and values around an '='. {_EXAMPLE}")
        if key in {dimension.key for dimension in space}:
            raise UsageError(f"--vary {key} is given twice: put all its values into one.")
        found = _RANGE.fullmatch(rest)
        space.append(_range(key, text, found) if found else Dimension(key, _values(key, rest)))
    return tuple(space)


def _range(key: str, text: str, found: re.Match[str]) -> Dimension:
    low_text, high_text, marks = found[1], found[2], [mark for mark in found[3].split(":") if mark]
    low, high = float(low_text), float(high_text)
    log = "log" in marks
    counts = [int(mark[:20]) for mark in marks if mark.isdecimal()]  # longer ones are too large anyway
    unknown = [mark for mark in marks if mark != "log" and not mark.isdecimal()]
    if unknown or len(counts) > 1:
        raise UsageError(
            f"--vary {text!r}: behind a range stand :log and a number of points, not {':'.join(marks)}."
        )
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(f"--vary {text!r}: a range goes from a smaller number to a larger one.")
    if log and low <= 0:
        raise UsageError(f"--vary {text!r}: a logarithmic range begins above 0.")
    if counts and not 2 <= counts[0] <= _MOST_POINTS:
        raise UsageError(f"--vary {text!r}: a range has at least 2 points, and at most {_MOST_POINTS:,}.")
    whole = all(re.fullmatch(r"[-+]?[0-9]+", part) for part in (low_text, high_text))
    return Dimension(key, (), low, high, log, whole, counts[0] if counts else _POINTS)


def _values(key: str, text: str) -> tuple[Any, ...]:
    """TOML values between commas; what is no TOML value is a string."""
    try:
        values = tomllib.loads(f"values = [{text}]")["values"]
    except tomllib.TOMLDecodeError:
        values = [_value(part.strip()) for part in text.split(",")]
    distinct: list[Any] = []
    for value in values:
        if value == "" or (isinstance(value, str) and re.match(rf"{_NUMBER}\.\.", value)):
            what = "an empty value between the commas" if value == "" else f"{value!r}, which is no range"
            raise UsageError(f"--vary {key}={text}: there is {what}. {_EXAMPLE}")
        if value not in distinct:
            distinct.append(value)
    return tuple(distinct)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def grid_of(space: Sequence[Dimension]) -> list[Settings]:
    """Every combination, the last key moving fastest."""
    keys = [dimension.key for dimension in space]
    combinations = product(*(dimension.grid() for dimension in space))
    return [dict(zip(keys, values, strict=True)) for values in combinations]


def random_draws(space: Sequence[Dimension], count: int, seed: int) -> list[Settings]:
    """The first `count` distinct draws; fewer where the space has no more. Draw t depends on the seed and t
    alone, so that more of them later are the same with others behind.
    """
    draws: list[Settings] = []
    repeated = number = 0
    while len(draws) < count and repeated < 1000:
        generator = np.random.Generator(np.random.PCG64([seed, number]))
        settings = {
            d.key: d.at(float(share)) for d, share in zip(space, generator.random(len(space)), strict=True)
        }
        number += 1
        if settings in draws:
            repeated += 1
        else:
            draws.append(settings)
            repeated = 0
    return draws


def words_of(settings: Mapping[str, Any]) -> str:
    """Settings in one line."""
    return ", ".join(f"{key} {shown(value)}" for key, value in settings.items())


def name_of(settings: Mapping[str, Any], limit: int = 60) -> str:
    """Settings as a part of a folder's name: the last words of the keys, and what a file system takes."""
    parts = (f"{key.rpartition('.')[2]}{shown(value)}" for key, value in settings.items())
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", "-".join(parts))[:limit].strip("._-")
