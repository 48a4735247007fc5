"""Numbers for people: SI prefixes, bytes, durations, values with their uncertainty.

Every function takes `None` and NaN as "not known" and returns an en dash, so that a table with holes
stays a table.
"""

from __future__ import annotations

import math

from lowrise.files import is_known

UNKNOWN = "–"

_SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
MINUTE, HOUR, DAY = 60, 3600, 86400  # seconds


def significant(value: float, digits: int = 3) -> str:
    """`value` in fixed notation with `digits` significant digits, trailing zeros kept: 12.3, 0.0450,
    1230.
    """
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    return f"{round(value, digits - 1 - exponent):.{max(0, digits - 1 - exponent)}f}"


def si(value: float | None, unit: str = "", digits: int = 3) -> str:
    """`value` with an SI prefix: `si(12_345_678)` is `"12.3 M"`, `si(1.23e9, "tokens")` is
    `"1.23 Gtokens"`.

    Whole numbers below 1000 stay whole. Beyond the prefixes (1e15 and more, below 1e-9) scientific notation
    is used.
    """
    if not is_known(value):
        return UNKNOWN
    if value == 0:
        return f"0 {unit}".strip()
    rounded = float(f"{value:.{digits - 1}e}")  # 999,999 is 1.00 M, not 1000 k
    if abs(rounded) >= 1e15 or abs(rounded) < 1e-9:
        return f"{scientific(value, digits)} {unit}".strip()
    if abs(value) < 1000 and float(value).is_integer():
        return f"{int(value)} {unit}".strip()
    scale, prefix = next((scale, prefix) for scale, prefix in _SI if abs(rounded) >= scale)
    return f"{significant(value / scale, digits)} {prefix}{unit}".strip()


def scientific(value: float | None, digits: int = 3) -> str:
    """`4.56e15` (no plus sign, no leading zero in the exponent)."""
    if not is_known(value):
        return UNKNOWN
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def bytes_(count: float | None) -> str:
    """A number of bytes with a binary prefix: `bytes_(1_300_000)` is `"1.24 MiB"`."""
    if not is_known(count):
        return UNKNOWN
    value, unit = float(count), 0
    while abs(value) >= 1024 and unit < len(_BINARY) - 1:
        value, unit = value / 1024, unit + 1
    return f"{int(value)} B" if unit == 0 else f"{significant(value)} {_BINARY[unit]}"


def duration(seconds: float | None) -> str:
    """`"0.42 s"`, `"12 s"`, `"3 min 20 s"`, `"2 h 05 min"`, `"3 d 4 h"`."""
    if not is_known(seconds):
        return UNKNOWN
    if seconds < 0:
        return "-" + duration(-seconds)
    if seconds < 10:
        return f"{significant(seconds, 2)} s"
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE:02d} s"
    if whole < DAY:
        return f"{whole // HOUR} h {whole % HOUR // MINUTE:02d} min"
    return f"{whole // DAY} d {whole % DAY // HOUR} h"


def milliseconds(value: float | None) -> str:
    """A time given in milliseconds: `"3.21 ms"`."""
    return UNKNOWN if not is_known(value) else f"{significant(value)} ms"


def number(value: float | None, decimals: int = 4) -> str:
    """Fixed number of decimals, as for losses."""
    return UNKNOWN if not is_known(value) else f"{value:.{decimals}f}"


def learning_rate(value: float | None) -> str:
    """Short and exact enough: `0.01`, `0.00025`, `2.5e-5`."""
    if not is_known(value):
        return UNKNOWN
    return (
        f"{value:.4g}"
        if value == 0 or abs(value) >= 1e-4
        else f"{float(f'{value:.4g}'):g}".replace("e-0", "e-")
    )


def with_uncertainty(mean: float | None, sd: float | None) -> str:
    """`3.457 ± 0.012`: the uncertainty with two significant digits, the mean to the same decimal place.

    Without an uncertainty (one value only) the mean has four decimals and nothing is pretended.
    """
    if not is_known(mean):
        return UNKNOWN
    if not is_known(sd):
        return number(mean)
    if sd == 0:
        return f"{number(mean)} ± 0"
    decimals = min(max(1 - math.floor(math.log10(sd)), 0), 6)
    return f"{mean:.{decimals}f} ± {sd:.{decimals}f}"


def ratio(value: float | None) -> str:
    """A ratio to a reference: `"×0.52"`."""
    return UNKNOWN if not is_known(value) else f"×{significant(value)}"


def percent(value: float | None) -> str:
    """A fraction as a percentage: `percent(0.123)` is `"12.3 %"`."""
    return UNKNOWN if not is_known(value) else f"{significant(100 * value)} %"
