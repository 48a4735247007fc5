"""What surrounds a rule in a step: its own precision, a bounded number of elements at a time, and matrices
in the place of tensors of other dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from lowrise.optim.engine.hyperball import holds_norm
from lowrise.optim.engine.state_formats import OPEN_ELEMENTS, compressed_elements, format_of
from lowrise.optim.engine.units import Unit, chunked, narrow_elements, units_of_matrices
from lowrise.optim.engine.views import as_matrices, split, write_back


def no_autocast() -> AbstractContextManager[Any]:
    """Rules choose their own precision: a step within `torch.autocast` has the bits of one outside."""
    enabled = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    if not enabled:
        return nullcontext()  # which `torch.compile` follows
    stack = ExitStack()
    for device in enabled:
        stack.enter_context(torch.autocast(device, enabled=False))
    return stack


def parts(group: Mapping[str, Any], units: list[Unit]) -> Iterable[list[Unit]]:
    """Units whose moments and gradients may be in float32 at the same time, where they are not always."""
    compressed = format_of(group) != "float32"

    def elements(unit: Unit) -> int:
        if holds_norm(group):  # ranks that share rows meet in the rule, and so make the same parts
            return unit.elements
        return narrow_elements(unit) + (compressed_elements(unit.states) if compressed else 0)

    return chunked(units, elements, OPEN_ELEMENTS)


@contextmanager
def viewed(group: dict[str, Any], units: list[Unit]) -> Iterator[tuple[dict[str, Any], list[Unit]]]:
    """Step 5: the group and its units with the matrices of the group's view in the place of tensors; what is
    written into copies is written back at the end.
    """
    view = group.get("view")
    if view is None:
        yield group, units
        return
    matrices = {id(p): split(p.detach(), view) for p in group["params"]}
    split_up = [units_of_matrices(unit, matrices[id(unit.params[0])], view) for unit in units]
    yield as_matrices(group, matrices), [unit for part in split_up for unit in part]
    for unit in units:
        write_back(unit.params[0], matrices[id(unit.params[0])])
