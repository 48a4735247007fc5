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

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from lowrise.distributed.sharding import ShardGroup, is_sharded, local, shard_group
from lowrise.distributed.transfers import Parcel, Transfer, least_loaded
from lowrise.optim.engine.cost import Counted
from lowrise.optim.engine.hyperball import holds_norm
from lowrise.optim.engine.product_decay import decays_product
from lowrise.optim.engine.state_formats import format_of
from lowrise.optim.engine.units import Unit, chunked, state_dtype, units_of

T = TypeVar("T")

# Most elements of weights that a rank owns in a transfer (64 MiB in float32); a few are under way at a time.
TRANSFER_ELEMENTS = 1 << 24


class Spread(Counted):
    """The part of `lowrise.optim.Optimizer` that knows of other ranks."""

    by_rows: ClassVar[frozenset[str]] = frozenset()
    """Those of `roles` whose rule moves every row of a parameter by itself."""
    ball_by_rows: ClassVar[frozenset[str]] = frozenset()
    """Those whose rule does so, and sums over ranks, where the group fixes norms (`hyperball.py`)."""
    shared_with: ShardGroup | None = None
    """The ranks that own units of which all have copies."""
    sent_bytes: int = 0
    """Sent by this rank to owners, and by it as an owner, in the last step."""
    wait_seconds: float = 0.0
    """In which the last step waited for that; on a CPU alone."""

    @abstractmethod
    def _move(
        self, group: dict[str, Any], units: list[Unit], wholes: Mapping[int, Tensor] | None = None
    ) -> None: ...

    # ---- who

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._owners: dict[Tensor, int] = {}  # first parameter of a unit -> rank
        self._loads: list[float] = []
        # Parameter -> shape and dtype that its state was made for.
        self._built: dict[Tensor, tuple[torch.Size, torch.dtype]] = {}
        super().__init__(*arguments, **options)

    def _forget_owners(self) -> None:
        """Before all are appointed anew."""
        self._owners, self._loads, self._built = {}, [], {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy: its owners are appointed anew."""
        super().__setstate__(state)
        self.__dict__.setdefault("_owners", {})
        self.__dict__.setdefault("_loads", [])
        self._built = {p: (p.shape, p.dtype) for group in self.param_groups for p in group["params"]}
        for group in self.param_groups:
            self._appoint(group)

    def share_work(self, ranks: ShardGroup) -> None:
        """Give each unit of which every rank has a copy, and whose rule needs it whole, to one rank.

        Call it before the first step, and sum gradients over ranks as before. The state of units that other
        ranks own is dropped here.
        """
        self.shared_with = ranks
        for group in self.param_groups:
            self._appoint(group)
            for unit in units_of(group):
                if self.is_elsewhere(unit):
                    for p in unit:
                        self.state[p] = {"step": self.state[p]["step"]}

    def moves_rows(self, group: Mapping[str, Any]) -> bool:
        """Whether each row of the group's parameters is moved by itself."""
        rows = self.ball_by_rows if holds_norm(group) else self.by_rows
        by_itself = group["role"] not in self.roles or group["role"] in rows
        whole = format_of(group) != "float32" or group.get("view") is not None or decays_product(group)
        return by_itself and not whole

    def ranks(self) -> ShardGroup | None:
        """The ranks that own units; None where nothing is spread."""
        shared = next((p for group in self.param_groups for p in group["params"] if is_sharded(p)), None)
        return self.shared_with if shared is None else shard_group(shared)

    def _appoint(self, group: Mapping[str, Any]) -> None:
        """Owners for the units of a group that need one and have none. They stay, whatever else changes."""
        ranks = self.ranks()
        if ranks is None or self.moves_rows(group):
            return
        self._loads = self._loads or [0.0] * ranks.size
        units = [
            unit
            for unit in units_of(group)
            if unit[0] not in self._owners and (self.shared_with is not None or is_sharded(unit[0]))
        ]
        owners = least_loaded([self._flops_of(group, unit) for unit in units], self._loads)
        self._owners.update((unit[0], owner) for unit, owner in zip(units, owners, strict=True))

    def owner(self, unit: Sequence[Tensor]) -> int | None:
        """The rank that moves a unit; None where each moves its copy or its rows."""
        return self._owners.get(unit[0])

    def is_elsewhere(self, unit: Sequence[Tensor]) -> bool:
        """Whether another rank has the unit's state."""
        ranks = self.ranks() if self._owners else None
        return ranks is not None and self.owner(unit) not in (None, ranks.rank)

    def common_state(self) -> dict[str, Tensor]:
        """Of `named_state`, what every rank has a copy of."""
        common = {}
        for group in self.param_groups:
            names = iter(group["param_names"])
            for unit in units_of(group):
                for p, name in zip(unit, names, strict=False):
                    for key, tensor in self.state[p].items():
                        if key == "step" or (self.owner(unit) is None and not is_sharded(tensor)):
                            common[f"{name}.{key}"] = tensor
        return common

    # ---- a step

    def _move_owned(self, group: dict[str, Any], units: Sequence[tuple[Tensor, ...]]) -> None:
        """Move units that have a gradient and an owner. The next chunk arrives while one is worked on, and
        the one before returns.
        """
        ranks = self.ranks() if units else None
        if ranks is None:
            return
        parcels = [Parcel(unit, tuple(p.grad for p in unit), self._owners[unit[0]]) for unit in units]
        chunks = list(_chunks(parcels, ranks.size))
        before: Transfer | None = None
        current = Transfer(ranks, chunks[0])
        for following in [*chunks[1:], None]:
            upcoming = None if following is None else Transfer(ranks, following)
            self._move_parcels(group, current)
            current.give_back()
            for finished in (before, current if upcoming is None else None):
                if finished is not None:
                    self._timed(finished.finish)
                    self.sent_bytes += finished.sent_bytes
            if upcoming is not None:
                before, current = current, upcoming

    def _move_parcels(self, group: dict[str, Any], transfer: Transfer) -> None:
        """The units of a transfer that this rank owns; the counters of all of them."""
        for parcel in transfer.parcels:
            if parcel.owner != transfer.ranks.rank:
                torch._foreach_add_([self.state[p]["step"] for p in parcel.params], 1.0)
        units, wholes = [], {}
        arrived = self._timed(transfer.whole)
        for parcel, (weights, grads) in zip(transfer.mine, arrived, strict=True):
            wholes.update({id(p): w for p, w in zip(parcel.params, weights, strict=True)})
            units.append(Unit(parcel.params, tuple(grads), tuple(self.state[p] for p in parcel.params)))
        self._move(group, units, wholes if transfer.by_rows else None)

    def _timed(self, wait: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = wait()
        self.wait_seconds += time.perf_counter() - started
        return result

    # ---- the ledger

    def planned_bytes_here(self) -> int:
        """Bytes of this rank's state by each class's formula over roles, shapes, options and owners."""
        total = 0
        for group in self.param_groups:
            for unit in units_of(group):
                if self.is_elsewhere(unit):
                    continue
                held = [tuple(p.shape if self.owner(unit) is not None else local(p).shape) for p in unit]
                layouts = self._stored_layouts(group["role"], tuple(held), group, state_dtype(unit[0]))
                total += sum(math.prod(shape) * d.itemsize for lay in layouts for shape, d in lay.values())
        return total


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


def _chunks(parcels: Sequence[Parcel], ranks: int) -> Iterator[list[Parcel]]:
    """Parcels of one kind and dtype, a bounded number of elements at a time."""
    kinds: dict[tuple[Any, ...], list[Parcel]] = {}
    for parcel in parcels:
        grads = {g.dtype for g in parcel.grads if g is not None}
        kind = (is_sharded(parcel.params[0]), parcel.params[0].dtype, *sorted(map(str, grads)))
        kinds.setdefault(kind, []).append(parcel)
    for same in kinds.values():
        yield from chunked(same, lambda p: sum(t.numel() for t in p.params), TRANSFER_ELEMENTS * ranks)
