"""Parameters of an optimizer that change after it was built: exchanged with their state, dropped, or
exchanged without its knowledge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.optim.engine.cost import Counted
from lowrise.optim.engine.options import parameter_name
from lowrise.optim.engine.ownership import zero_state
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
def exchange(optimizer: Counted, exchanges: Sequence[Exchange]) -> None:
    """Make the exchanges; parameters that the optimizer does not have are passed over. For layers whose
    shapes change during training: assigning a tensor of another shape to `.data` would fail in the next
    backward pass.

    State tensors of the parameter's shape go through `carry`; others are numbers (`step`) and are kept. All
    parameters of a unit are to be exchanged in one call.
    """
    by_id = {id(e.old): e for e in exchanges}
    for group in optimizer.param_groups:
        members = group["params"]
        found = {i: by_id[id(p)] for i, p in enumerate(members) if id(p) in by_id}
        if not found:
            continue
        saved = {i: optimizer.rename(e.old, e.new) for i, e in found.items()}
        for i, e in found.items():
            members[i] = e.new
        position = 0
        for unit in units_of(group):
            for param, layout in zip(unit, optimizer.layouts(group, unit), strict=True):
                if position in found:
                    # Another rank may own the unit: then there is `step` alone, here and afterwards.
                    elsewhere = saved[position].keys() == {"step"}
                    optimizer.state[param] = zero_state(param, {} if elsewhere else layout)
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


def retain(optimizer: Counted, parameters: Iterable[Tensor]) -> None:
    """What `Optimizer.retain` says."""
    kept = {id(p) for p in parameters}
    for group in optimizer.param_groups:
        for unit in units_of(group):
            if len({id(p) in kept for p in unit}) > 1:
                raise UsageError(
                    f"a unit of the role {group['role']!r} cannot lose a part of its parameters; drop "
                    "all of them or none."
                )
    for group in optimizer.param_groups:
        keep = [id(p) in kept for p in group["params"]]
        if all(keep):
            continue
        for param, stays in zip(group["params"], keep, strict=True):
            if not stays:
                optimizer.forget(param)
        for key in ("params", "param_names"):
            if key in group:
                group[key] = [x for x, stays in zip(group[key], keep, strict=True) if stays]


def was_exchanged_outside(optimizer: Counted) -> bool:
    """Whether groups hold Parameter objects that the optimizer has no state for. Raises `UsageError` if they
    came after a step.
    """
    unknown = [
        parameter_name(g, i)
        for g in optimizer.param_groups
        for i, p in enumerate(g["params"])
        if p not in optimizer.state
    ]
    if unknown and any(float(state["step"]) for state in optimizer.state.values() if "step" in state):
        raise UsageError(
            f"{unknown[0]} ({len(unknown)} in all) was exchanged for another Parameter after steps had "
            "been taken, so its moments cannot be found: build the optimizer after the model has been "
            "sharded or converted, and load its state with load_state_dict."
        )
    return bool(unknown)
