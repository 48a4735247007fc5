"""Whether a run may go on with another length or schedule: where all that it has done was the same.

Learning rates are compared by their values at the updates done, and so is what layers and the optimizer did
because of the time (`timed`): a guide that fades, a merge, a reset, an event of adaptive ranks.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from lowrise.config import RunConfig, ScheduleSection
from lowrise.config.sections import EmaSection
from lowrise.config.values import share_or_count
from lowrise.errors import LowriseError, UsageError
from lowrise.layers.base import LowRankLayer
from lowrise.optim import Optimizer
from lowrise.runs.tail_average import Tail
from lowrise.train.schedule import multiplier, of_others, restarts_of


@dataclasses.dataclass(frozen=True)
class Course:
    """Number of updates, schedule and average of a run."""

    steps: int
    schedule: ScheduleSection
    ema: EmaSection

    @classmethod
    def of(cls, config: RunConfig) -> Course:
        return cls(config.train.steps, config.schedule, config.ema)

    def text(self) -> str:
        """For a checkpoint."""
        schedule, ema = dataclasses.asdict(self.schedule), dataclasses.asdict(self.ema)
        return json.dumps({"steps": self.steps, "schedule": schedule, "ema": ema})

    @classmethod
    def read(cls, text: str) -> Course:
        try:
            values = json.loads(text)
            schedule, ema = ScheduleSection(**values["schedule"]), EmaSection(**values["ema"])
            return cls(values["steps"], schedule, ema)
        except (ValueError, KeyError, TypeError) as error:
            raise LowriseError(f"The checkpoint's schedule cannot be read ({error}).") from error


def require_same_course(
    before: Course,
    now: Course,
    done: int,
    *,
    skipped: int,
    layers: Sequence[LowRankLayer],
    optimizer: Optimizer,
) -> None:
    """Raise `UsageError`, with both values and the way, unless `done` updates were the same under both."""
    if now.steps < done:
        raise UsageError(
            f"train.steps = {now.steps}, and this run has done {done} updates already: give at least {done}, "
            "or begin another run from an earlier checkpoint with init.run and init.step."
        )
    if before == now:
        return
    _require_same_average(before, now, done)
    old, new = (
        restarts_of(course.schedule, optimizer.resets(course.steps, skipped), course.steps)
        for course in (before, now)
    )
    own, others = (before.schedule, now.schedule), (of_others(before.schedule), of_others(now.schedule))
    for update in range(1, done + 1):
        for there, here in (own, others):
            a = multiplier(update, before.steps, there, old)
            b = multiplier(update, now.steps, here, new)
            if a != b:
                raise UsageError(
                    f"This run has done {done} updates under another schedule ({_told(before, now)}): the "
                    f"learning rate of update {update} was {a:.6g} of its peak, and would now be {b:.6g}. "
                    f"{_way(before, now, update, done)}"
                )
    timed: list[LowRankLayer | Optimizer] = [
        *(part for part in layers if type(part).timed is not LowRankLayer.timed),
        *([optimizer] if type(optimizer).timed is not Optimizer.timed else []),
    ]
    for update in range(1, done + 1):
        for part in timed:
            if part.timed(update, before.steps) != part.timed(update, now.steps):
                raise UsageError(
                    f"This run has done {done} updates with train.steps = {before.steps}; with {now.steps} "
                    f"update {update} would have been another one, since what {type(part).__name__} does "
                    f"then depends on the length of the run. {_BRANCH}"
                )


def _require_same_average(before: Course, now: Course, done: int) -> None:
    """An average that has begun goes on as it began; one that is still to come, or none, may be asked for."""
    old, new = (Tail.of(course.ema, course.steps) for course in (before, now))
    if new is None or new.start > done or (old and (old.start, old.horizon) == (new.start, new.horizon)):
        return
    told = "none" if old is None else f"ema.start {old.start}, ema.horizon {old.horizon}"
    raise UsageError(
        f"This run has done {done} updates with another average of its weights ({told} there; ema.start "
        f"{new.start}, ema.horizon {new.horizon} here): give what it had, or an ema.start above {done}."
    )


_BRANCH = (
    "Begin a new run from it: --init.run FOLDER --init.what all keeps weights, optimizer state and place in "
    "the data (--init.step takes an earlier checkpoint)."
)


def _told(before: Course, now: Course) -> str:
    values = [("train.steps", before.steps, now.steps)]
    values += [
        (f"schedule.{field.name}", getattr(before.schedule, field.name), getattr(now.schedule, field.name))
        for field in dataclasses.fields(ScheduleSection)
    ]
    return "; ".join(f"{key}: {a} there, {b} here" for key, a, b in values if a != b)


def _way(before: Course, now: Course, update: int, done: int) -> str:
    """What to do about a schedule that does not agree."""
    schedule = now.schedule
    if schedule.name in ("constant", "wsd"):
        warm = share_or_count(before.schedule.warmup, before.steps)
        if schedule.warmup < 1 and share_or_count(schedule.warmup, now.steps) != warm:
            return (
                f"schedule.warmup = {schedule.warmup:g} is a fraction of all updates: say the number that it "
                f"was, --schedule.warmup {warm}."
                if warm
                else f"Set schedule.warmup to {before.schedule.warmup:g}, as it was."
            )
        if schedule.name == "wsd":
            return (
                f"A wsd run can be made longer until its decay begins, and the updates from {update} to "
                f"{done} were of the decay. {_BRANCH}"
            )
        return _BRANCH
    return (
        f"A {schedule.name} schedule is fixed by its length from the first update on (wsd, until its decay, "
        f"and constant are not). {_BRANCH}"
    )
