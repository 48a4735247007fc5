"""What `rank` means, for layers and optimizers alike."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, Literal

from lowrise.errors import UsageError

Above = Literal["refuse", "clip", "keep"]


def resolve_rank(rank: Any, m: int, n: int, *, where: str = "", above: Above = "refuse") -> int:
    """The rank of one m x n matrix.

    An integer is the rank itself. A float in (0, 1] is the share of min(m, n), rounded down and at least 1:
    max(1, floor(rank * min(m, n))), where a product within 1e-9 of the next integer is that integer, so
    that 0.29 of 100 is 29. So 1 is rank one, 1.0 is full rank. Numbers of numpy count as Python's.

    An integer above min(m, n) raises `UsageError`, becomes min(m, n) ("clip"), or is taken as it is ("keep").
    A bool, a float above 1 (128.0 could be meant either way) and what is no number raise it always. `where`
    begins the message.
    """
    check_rank_value(rank, where=where, of=f" for a {m} x {n} weight")
    smaller = min(m, n)
    if not isinstance(rank, Integral):
        product = float(str(rank)) * smaller  # str: 0.29 of numpy's float32 is 0.29, too
        return min(max(1, math.floor(product * (1 + 1e-9))), max(1, smaller))
    if int(rank) <= smaller or above == "keep":
        return int(rank)
    if above == "clip":
        return smaller
    raise UsageError(
        f"{_place(where)}rank {rank} is impossible for a {m} x {n} weight; "
        f"choose 1 to {smaller} (or a ratio above 0 and up to 1.0)."
    )


def check_rank_value(rank: Any, *, where: str = "", of: str = "") -> None:
    """Raise `UsageError` for what is a rank or a share of no matrix; `of` describes the matrix."""
    place = _place(where)
    if isinstance(rank, bool) or not isinstance(rank, Real):
        raise UsageError(
            f"{place}rank = {rank!r}; the rank must be an integer (the rank itself) or a float above 0 and "
            "up to 1.0 (the share of min(m, n))."
        )
    if isinstance(rank, Integral):
        if int(rank) < 1:
            raise UsageError(
                f"{place}rank {rank} is impossible{of}; choose 1 or more (or a ratio above 0 and up to 1.0)."
            )
    elif not 0 < float(rank) <= 1:
        value = float(rank)
        whole = math.isfinite(value) and value.is_integer() and value >= 1
        reading = (
            f"write {int(value)} for that rank, or {int(value)}/min(m, n) for the share"
            if whole
            else ("give an integer for the rank itself, or a share in that range")
        )
        raise UsageError(
            f"{place}rank = {rank!r} is a float, which is the share of min(m, n): the ratio must be above 0 "
            f"and at most 1.0; {reading}."
        )


def _place(where: str) -> str:
    return f"{where}: " if where else ""
