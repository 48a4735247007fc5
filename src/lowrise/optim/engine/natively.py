"""Which units of a group go through the passes in C++ (`linalg/passes.py`). It is asked of each unit by
itself, so that how ranks divide the units changes no bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lowrise.linalg.passes import Passes, fits, passes_here
from lowrise.optim.engine.hyperball import holds_norm
from lowrise.optim.engine.units import Unit


def divided(
    group: Mapping[str, Any], units: Sequence[Unit], moments: Sequence[str] = ()
) -> tuple[Passes | None, list[Unit], list[Unit]]:
    """The passes, units of one matrix that go through them, and the rest: (None, [], all) where there are no
    passes, or norms are fixed. `moments`: entries of the state that the passes write.
    """
    passes = None if holds_norm(group) else passes_here()
    if passes is None:
        return None, [], list(units)
    native: list[Unit] = []
    rest: list[Unit] = []
    for unit in units:
        (state,) = unit.states
        able = fits([*unit.params, *unit.grads], [state[name] for name in moments if name in state])
        (native if able else rest).append(unit)
    return passes, native, rest
