"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from lowrise.report import formatting as f


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (f.si(12_345_678), "12.3 M"),
        (f.si(999_999), "1.00 M"),
        (f.si(512), "512"),
        (f.si(0), "0"),
        (f.si(-4096), "-4.10 k"),
        (f.si(1.23e9, "FLOPs"), "1.23 GFLOPs"),
        (f.si(0.0042, "s"), "4.20 ms"),
        (f.si(4.56e15), "4.56e15"),
        (f.scientific(4.56e15), "4.56e15"),
        (f.scientific(1e-7, 1), "1e-7"),
        (f.bytes_(1023), "1023 B"),
        (f.bytes_(0), "0 B"),
        (f.bytes_(1_300_000), "1.24 MiB"),
        (f.bytes_(3 * 2**30), "3.00 GiB"),
        (f.duration(0.42), "0.42 s"),
        (f.duration(59.7), "1 min 00 s"),
        (f.duration(200), "3 min 20 s"),
        (f.duration(2 * 3600 + 300), "2 h 05 min"),
        (f.duration(3 * 86400 + 4 * 3600), "3 d 4 h"),
        (f.milliseconds(12.34), "12.3 ms"),
        (f.learning_rate(0.02), "0.02"),
        (f.learning_rate(2.5e-5), "2.5e-5"),
        (f.with_uncertainty(3.45678, 0.0123), "3.457 ± 0.012"),
        (f.with_uncertainty(30.7, 1.5), "30.7 ± 1.5"),
        (f.with_uncertainty(1234.0, 57.0), "1234 ± 57"),
        (f.with_uncertainty(3.45678, None), "3.4568"),
        (f.ratio(0.5217), "×0.522"),
        (f.percent(0.1234), "12.3 %"),
    ],
)
def test_written_for_people(shown: str, expected: str) -> None:
    assert shown == expected


@pytest.mark.parametrize(
    "show",
    [f.si, f.scientific, f.bytes_, f.duration, f.milliseconds, f.number, f.learning_rate, f.ratio, f.percent],
)
@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_not_known_is_a_dash(show: Callable[[float | None], str], value: float | None) -> None:
    assert show(value) == f.UNKNOWN


@pytest.mark.parametrize("exponent", range(-12, 20))
def test_si_keeps_the_value_to_three_digits(exponent: int) -> None:
    value = 1.2345 * 10.0**exponent
    number, _, prefix = f.si(value).partition(" ")
    scale = {"n": 1e-9, "µ": 1e-6, "m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[prefix]
    assert float(number) * scale == pytest.approx(value, rel=5e-3)  # half of the third digit of 1.23
