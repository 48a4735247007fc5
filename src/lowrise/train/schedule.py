"""Learning-rate multipliers.

`multiplier(update, total, section, restarts)` is a pure function of the number of the update, counted from
1 to `total`: the first update of a warm-up of w has 1/w, update w has 1, update `total` has `min_lr_ratio`.

Shapes after a warm-up of w updates, with p = (u - w) / (total - w), u the update, final = `min_lr_ratio`:
  cosine    final + (1 - final) (1 + cos(pi p)) / 2
  linear    1 - (1 - final) p
  wsd       1 until the last `decay` updates, then linear down to final  (arXiv 2404.06395, section 4)
  constant  1
What is not a matrix may have a warm-up of its own: `of_others` is the section with it in its place.
Dips: for a restart at update R the multiplier of updates R <= u < R + q is (u - R) / q times the shape at R
+ q, so it leaves the curve at R and is back on it, continuously, after q updates. This is the jagged cosine
of ReLoRA (authors' training_utils.py, `get_cosine_schedule_with_multiple_warmups`) when restarts come every
`cycle` updates. Restarts also follow from the optimizer: where it zeroes moments after update R, update R +
1 begins a dip, whatever the cycle; unless update R itself begins one, as in ReLoRA, whose update R has
multiplier 0 and is followed by merge and reset. Dips of resets come within the warm-up too (where the shape
is u / w), because the first updates after a reset are as long as the rate allows; restarts of the cycle wait
for its end.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from lowrise.config import ScheduleSection
from lowrise.config.values import share_or_count


def of_others(section: ScheduleSection) -> ScheduleSection:
    """The schedule of the rate of what is not a matrix."""
    return section if section.other_warmup is None else replace(section, warmup=section.other_warmup)


def restarts_of(section: ScheduleSection, resets: Sequence[int], total: int) -> tuple[int, ...]:
    """Updates that begin a dip: multiples of the cycle (not the last update, which would be lost), and each
    update after a reset of the optimizer's moments."""
    if not section.restart_warmup:
        return ()
    cycle = range(section.cycle, total, section.cycle) if section.cycle else range(0)
    return tuple(sorted({*cycle, *(reset + 1 for reset in resets if reset not in cycle)}))


def multiplier(update: int, total: int, section: ScheduleSection, restarts: Sequence[int] = ()) -> float:
    """The factor on every peak learning rate at this update; `restarts` ascending, from `restarts_of`."""
    warmup = share_or_count(section.warmup, total)
    index = bisect_right(restarts, update) - 1
    if index >= 0 and update - restarts[index] < section.restart_warmup:
        restart, length = restarts[index], section.restart_warmup
        of_the_cycle = section.cycle > 0 and restart % section.cycle == 0
        if update >= warmup or not of_the_cycle:
            return (update - restart) / length * _shape(restart + length, warmup, total, section)
    return _shape(update, warmup, total, section)


def _shape(update: int, warmup: int, total: int, section: ScheduleSection) -> float:
    if update < warmup:
        return update / warmup
    progress = min(1.0, (update - warmup) / max(1, total - warmup))
    if section.name == "cosine":
        return section.min_lr_ratio + (1 - section.min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2
    if section.name == "linear":
        return 1 - (1 - section.min_lr_ratio) * progress
    if section.name == "wsd":
        length = max(1, share_or_count(section.decay, total))
        return 1 - (1 - section.min_lr_ratio) * max(0.0, min(1.0, (update - (total - length)) / length))
    return 1.0
