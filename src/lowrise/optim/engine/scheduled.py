"""What a training loop tells an optimizer, and asks it, about the course of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from lowrise.optim.engine.units import step_of, units_of


class Scheduled:
    """The part of `lowrise.optim.Optimizer` that goes by the loop's count of updates. By default nothing
    does."""

    roles: ClassVar[frozenset[str]]
    param_groups: list[dict[str, Any]]
    state: Any

    def after_update(self, number: int, total: int) -> None:
        """Called by a training loop after the step of update `number` (1 to `total`) and the layers' own
        `after_update`, for what goes by the loop's count. Must depend on its arguments, groups and state
        alone.
        """

    def timed(self, number: int, total: int) -> object:
        """What `after_update` does at update `number` of `total` because of the time alone; a run may be
        made longer where this is equal for both lengths.
        """
        return None

    def resets(self, total_steps: int, skipped: int = 0) -> tuple[int, ...]:
        """Updates of a training loop, 1 to `total_steps`, after which this optimizer drops its moments, so
        that a schedule may dip there. None by default.

        `skipped`: updates so far for which the loop did not call `step`. A rule that counts its own steps
        comes that many updates later from then on.
        """
        return ()

    def rewritten(self) -> list[Tensor]:
        """Parameters that the last step left in another basis than they were in, besides moving them: a mean
        of them from before and after would be of nothing. Counters alone say it: nothing waits for the
        device.
        """
        return []

    def _rebalanced_pairs(self) -> list[Tensor]:
        """`rewritten` of a class whose pairs are balanced every `rebalance_every` of their own steps."""
        return [
            p
            for group in self.param_groups
            if group["role"] in self.roles
            for unit in units_of(group)
            if is_rebalanced(group, self.state[unit[0]])
            for p in unit
        ]


def is_rebalanced(group: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
    """Whether the step that a factor's counter (on the CPU) stands at ends with balanced factors."""
    every = group["rebalance_every"]
    return bool(every) and step_of(state) % every == 0
