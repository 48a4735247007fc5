"""The inverse of a plan: the largest model of a family of shapes that a method trains in given bytes.

1. The family is that of `model/shapes.py`, at `FINE_WIDTHS`; all else (batch, sequence length, vocabulary,
   optimizer) is the configuration's.
2. A rank that the configuration gives as a number keeps its proportion to the width, rounded down and at
   least 1, unless it is 1 or the caller holds it; a share of min(m, n) is one already.
3. The planned peak of a device grows with the width, so the last width that fits is found by growing by half
   until one does not, then halving in between. A width that the configuration refuses (a rank that is larger
   than a matrix) is too small.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from lowrise.config import RunConfig
from lowrise.errors import UsageError
from lowrise.model.shapes import FINE_WIDTHS, Shape, shape_of
from lowrise.runs.build import llama_config
from lowrise.runs.planner import Planned


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The largest member that fits, and the next one, which does not."""

    config: RunConfig
    shape: Shape
    peak: int
    """Bytes of the device that needs most."""
    next_width: int | None
    """None: the family ends before the bytes do."""
    next_peak: int | None


def largest_fit(
    config: RunConfig, room: int, *, devices: int, autocast: bool, hold_rank: bool = False
) -> Fitted:
    """The largest member whose planned peak is at most `room` bytes per device.

    Raises `UsageError` where even the smallest member that the configuration accepts takes more.
    """

    @cache
    def peak(place: int) -> int | None:
        try:
            shaped = with_width(config, FINE_WIDTHS[place], hold_rank=hold_rank)
            planned = Planned(shaped, config.data.vocab_size, devices=devices, autocast=autocast)
        except UsageError:
            return None
        return planned.on_device().peak

    def fits(place: int) -> bool:
        there = peak(place)
        return there is None or there <= room

    low, high, last = -1, 0, len(FINE_WIDTHS)
    while high < last and fits(high):
        low, high = high, _half_wider(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    found = peak(low) if low >= 0 else None
    if found is None:
        raise UsageError(
            _none_fits(config, room, FINE_WIDTHS[min(high, last - 1)], peak(min(high, last - 1)))
        )
    return Fitted(
        config=with_width(config, FINE_WIDTHS[low], hold_rank=hold_rank),
        shape=shape_of(FINE_WIDTHS[low]),
        peak=found,
        next_width=FINE_WIDTHS[high] if high < last else None,
        next_peak=peak(high) if high < last else None,
    )


def with_width(config: RunConfig, width: int, *, hold_rank: bool = False) -> RunConfig:
    """The configuration with the member of the family that has this width, and ranks in proportion."""
    before = llama_config(config.model, config.data.vocab_size, config.train.seq_len).hidden_size
    fields = {key.removeprefix("model."): value for key, value in shape_of(width).settings.items()}
    model = replace(config.model, **fields | {"num_kv_heads": None})  # type: ignore[arg-type]
    layer, optimizer = config.layer, config.optimizer
    if not hold_rank:
        layer, optimizer = (_in_proportion(section, width, before) for section in (layer, optimizer))
    return replace(config, model=model, layer=layer, optimizer=optimizer)


def _in_proportion(section: Any, width: int, before: int) -> Any:
    rank = getattr(section, "rank", None)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank == 1:
        return section
    return replace(section, rank=max(1, rank * width // before))


def _half_wider(place: int) -> int:
    """The place of the first width that is at least half as wide again, or the end."""
    wanted = 3 * FINE_WIDTHS[place] // 2
    return next((i for i, width in enumerate(FINE_WIDTHS) if width >= wanted), len(FINE_WIDTHS))


def _none_fits(config: RunConfig, room: int, width: int, peak: int | None) -> str:
    if peak is None:
        return f"{config.method} allows no model of the family up to width {width}: look at its rank."
    return (
        f"{config.method} has no model of the family that fits in {room:,} bytes: at width {width}, the "
        f"smallest that its settings allow, a device needs {peak:,}. Give more, a smaller micro batch "
        "(--micro_batch_size 1), or recomputed blocks (--recompute block)."
    )
