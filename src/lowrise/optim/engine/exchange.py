"""Give an optimizer other `Parameter` objects in the place of those it has, with their state.

For layers whose shapes change during training: assigning a tensor of another shape to `.data` would fail in
the next backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrise.optim.engine.base import Optimizer, _zero_state
from lowrise.optim.engine.state_formats import loaded
from lowrise.optim.engine.units import units_of


@dataclass(frozen=True)
class Exchange:
    """`new` takes the place of `old` (the same object where the shape stays)."""

    old: Tensor
    new: Tensor
    carry: Callable[[str, Tensor], Tensor] | None = None
    """(state name, state tensor of the shape of `old`) -> that of `new`. None: the new state is zero."""


@torch.no_grad()
def exchange(optimizer: Optimizer, exchanges: Sequence[Exchange]) -> None:
    """Make the exchanges; parameters that the optimizer does not have are passed over.

    State tensors of the parameter's shape go through `carry`; others are numbers (`step`) and are kept. All
    parameters of a unit are to be exchanged in one call.
    """
    by_id = {id(e.old): e for e in exchanges}
    for group in optimizer.param_groups:
        members = group["params"]
        found = {i: by_id[id(p)] for i, p in enumerate(members) if id(p) in by_id}
        if not found:
            continue
        saved = {i: optimizer.state.pop(e.old) for i, e in found.items()}
        for i, e in found.items():
            members[i] = e.new
            optimizer._built.pop(e.old, None)
            optimizer._built[e.new] = (e.new.shape, e.new.dtype)
            if e.old in optimizer._owners:
                optimizer._owners[e.new] = optimizer._owners.pop(e.old)
        position = 0
        for unit in units_of(group):
            for param, layout in zip(unit, optimizer._layouts(group, unit), strict=True):
                if position in found:
                    # Another rank may own the unit: then there is `step` alone, here and afterwards.
                    elsewhere = saved[position].keys() == {"step"}
                    optimizer.state[param] = _zero_state(param, {} if elsewhere else layout)
                    with optimizer.opened_state(group, [param]) as (state,):
                        _carry_into(state, loaded(saved[position]), found[position])
                position += 1


def _carry_into(state: dict[str, Tensor], saved: dict[str, Tensor], e: Exchange) -> None:
    for name, tensor in saved.items():
        if tensor.ndim == 0:
            state[name].copy_(tensor)
        elif e.carry is not None:
            assert tensor.shape[-1] == e.old.shape[-1], f"{name}: no rule for a state of shape {tensor.shape}"
            state[name].copy_(e.carry(name, tensor))
