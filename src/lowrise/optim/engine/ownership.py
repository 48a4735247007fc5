"""How an optimizer's work and state are spread over ranks. Each unit is moved in one of three ways:

| way | parameters | state | arithmetic |
|---|---|---|---|
| copied | every rank has a copy | a copy each | repeated by every rank |
| by rows | shared by rows (FSDP2) | the same rows | each rank its rows |
| owned | shared by rows, or copies after `share_work` | whole, at the owner alone | once, by the owner |

The first two need no communication. To an owner go weights and gradients, and new weights come back
(`lowrise.distributed.transfers`).

By rows go rules that move every row by itself: the built-in AdamW, and the roles in a class's `by_rows`. All
others need a whole matrix and are owned, and so are groups with a view, those whose products decay, weights
of fixed norm but for AdamW's matrices, and state in another format than float32, whose blocks and rounding
belong to the whole tensor. Copies are owned only after `share_work`.

The owner of a unit is a function of roles, shapes and options (`least_loaded` over the FLOPs of a step), the
same at every rank, fixed when its group is added; in the state of the other ranks there is its `step` alone.
With copies of a sharded model (HSDP) each copy has its own owners. Owners belong to the ranks and not to the
run: they are not saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lowrise.distributed.sharding import ShardGroup, is_sharded, local, shard_group
from lowrise.distributed.transfers import Parcel, Transfer, least_loaded
from lowrise.optim.engine.state_formats import Stored
from lowrise.optim.engine.units import Unit, chunked, units_of

T = TypeVar("T")
State = Mapping[Tensor, dict[str, Any]]
Update = Callable[[list[Unit], Mapping[int, Tensor] | None], None]

# Most elements of weights that a rank owns in a transfer (64 MiB in float32); a few are under way at a time.
TRANSFER_ELEMENTS = 1 << 24


class Ownership:
    """What one optimizer knows of other ranks: who owns which units, and the way of weights and gradients to
    an owner and back."""

    def __init__(self) -> None:
        self.shared_with: ShardGroup | None = None
        """The ranks that own units of which all have copies."""
        self.sent_bytes: int = 0
        """Sent by this rank to owners, and by it as an owner, in the last step."""
        self.wait_seconds: float = 0.0
        """In which the last step waited for that; on a CPU alone."""
        self._sharding: ShardGroup | None = None
        self._owners: dict[Tensor, int] = {}  # first parameter of a unit -> rank
        self._loads: list[float] = []

    # ---- who

    @property
    def ranks(self) -> ShardGroup | None:
        """The ranks that own units; None where nothing is spread."""
        return self._sharding or self.shared_with

    def owner(self, unit: Sequence[Tensor]) -> int | None:
        """The rank that moves a unit; None where each moves its copy or its rows."""
        return self._owners.get(unit[0])

    def is_elsewhere(self, unit: Sequence[Tensor]) -> bool:
        """Whether another rank has the unit's state."""
        return self.ranks is not None and self.owner(unit) not in (None, self.ranks.rank)

    def appoint(
        self, group: Mapping[str, Any], *, by_rows: bool, cost_of: Callable[[tuple[Tensor, ...]], float]
    ) -> None:
        """Owners for the units of a group that need one and have none. They stay, whatever else changes.

        `by_rows`: the group's rule moves every row by itself; `cost_of(unit)`: FLOPs of a step.
        """
        if self._sharding is None:
            sharded = next((p for p in group["params"] if is_sharded(p)), None)
            self._sharding = None if sharded is None else shard_group(sharded)
        ranks = self.ranks
        if ranks is None or by_rows:
            return
        self._loads = self._loads or [0.0] * ranks.size
        units = [
            unit
            for unit in units_of(group)
            if unit[0] not in self._owners and (self.shared_with is not None or is_sharded(unit[0]))
        ]
        owners = least_loaded([cost_of(unit) for unit in units], self._loads)
        self._owners.update((unit[0], owner) for unit, owner in zip(units, owners, strict=True))

    def forget(self, param: Tensor) -> None:
        """A parameter that is no longer there."""
        self._owners.pop(param, None)

    def rename(self, old: Tensor, new: Tensor) -> None:
        """`new` in the place of `old`, with the same owner."""
        if old in self._owners:
            self._owners[new] = self._owners.pop(old)

    # ---- a step

    def begin(self) -> None:
        """Count anew, for the next step."""
        self.sent_bytes, self.wait_seconds = 0, 0.0

    def update(self, units: Sequence[tuple[Tensor, ...]], state: State, update: Update) -> None:
        """Bring units that have a gradient and an owner there, let the owner update them, and bring the
        weights back. The next chunk arrives while one is worked on, and the one before returns.

        `update(units, wholes)` does the arithmetic for the units that this rank owns; `wholes` has their
        whole matrices by the id of a parameter, None where the parameters themselves are whole.
        """
        ranks = self.ranks if units else None
        if ranks is None:
            return
        parcels = [Parcel(unit, tuple(p.grad for p in unit), self._owners[unit[0]]) for unit in units]
        chunks = list(_chunks(parcels, ranks.size))
        before: Transfer | None = None
        current = Transfer(ranks, chunks[0])
        for following in [*chunks[1:], None]:
            upcoming = None if following is None else Transfer(ranks, following)
            self._update_parcels(current, state, update)
            current.give_back()
            for finished in (before, current if upcoming is None else None):
                if finished is not None:
                    self._timed(finished.finish)
                    self.sent_bytes += finished.sent_bytes
            if upcoming is not None:
                before, current = current, upcoming

    def _update_parcels(self, transfer: Transfer, state: State, update: Update) -> None:
        """The units of a transfer that this rank owns; the counters of all of them."""
        for parcel in transfer.parcels:
            if parcel.owner != transfer.ranks.rank:
                torch._foreach_add_([state[p]["step"] for p in parcel.params], 1.0)
        units, wholes = [], {}
        arrived = self._timed(transfer.whole)
        for parcel, (weights, grads) in zip(transfer.mine, arrived, strict=True):
            wholes.update({id(p): w for p, w in zip(parcel.params, weights, strict=True)})
            units.append(Unit(parcel.params, tuple(grads), tuple(state[p] for p in parcel.params)))
        update(units, wholes if transfer.by_rows else None)

    def _timed(self, wait: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = wait()
        self.wait_seconds += time.perf_counter() - started
        return result


def here(unit: Unit, wholes: Mapping[int, Tensor] | None) -> Unit:
    """The unit as a rule sees it: its whole matrices where they have come, or this rank's rows."""
    if wholes is not None:
        return replace(unit, params=tuple(wholes[id(p)] for p in unit.params))
    if not any(is_sharded(p) for p in unit.params):
        return unit
    return Unit(
        tuple(local(p) for p in unit.params),
        unit.grads,
        tuple({key: local(t) for key, t in state.items()} for state in unit.states),
    )


def shape_of(param: Tensor) -> Tensor:
    """A stand-in for a shared parameter, which has the whole shape and no values; others are themselves."""
    if is_sharded(param):
        return torch.empty(param.shape, dtype=param.dtype, device="meta")
    return param.detach()


def seen_group(group: dict[str, Any], wholes: Mapping[int, Tensor] | None) -> dict[str, Any]:
    """The group as a rule sees it, with whole matrices in the place of shared parameters; those of other
    ranks have shapes alone.
    """
    if wholes is None:
        return group
    params = [wholes[id(p)] if id(p) in wholes else shape_of(p) for p in group["params"]]
    return {**group, "params": params, "viewed_group": group}


def zero_state(param: Tensor, stored: Stored, *, whole: bool = False) -> dict[str, Tensor]:
    """Zeros for each tensor; one of a shared parameter's shape is shared like it, unless it is kept whole."""
    state = {"step": torch.zeros((), dtype=torch.float32)}
    for key, (shape, dtype) in stored.items():
        if shape == tuple(param.shape) and not (whole and is_sharded(param)):
            state[key] = torch.zeros_like(param, dtype=dtype, requires_grad=False)
        else:
            state[key] = torch.zeros(shape, dtype=dtype, device=param.device)
    return state


def _chunks(parcels: Sequence[Parcel], ranks: int) -> Iterator[list[Parcel]]:
    """Parcels of one kind and dtype, a bounded number of elements at a time."""
    kinds: dict[tuple[Any, ...], list[Parcel]] = {}
    for parcel in parcels:
        grads = {g.dtype for g in parcel.grads if g is not None}
        kind = (is_sharded(parcel.params[0]), parcel.params[0].dtype, *sorted(map(str, grads)))
        kinds.setdefault(kind, []).append(parcel)
    for same in kinds.values():
        yield from chunked(same, lambda p: sum(t.numel() for t in p.params), TRANSFER_ELEMENTS * ranks)
