"""Whole-matrix work, done once: every unit has an owner among the ranks.

Muon's polar factor, GaLore's SVD or LORO's exact step need a matrix as a whole. The **owner** of a unit keeps
its state and moves it; the others only lend and take back what they have of it.

1. `least_loaded` gives every unit an owner, the costliest first, each to the rank with the least work so far:
   a function of the costs alone, so all ranks find the same.
2. A `Transfer` brings a chunk of units to their owners: of parameters that ranks share by rows, each rank
   sends its rows of weights and gradients, in one all-to-all. Parameters of which every rank has a copy are
   there already.
3. The owners move their units, in place.
4. `Transfer.give_back` sends new weights to their rows, again by one all-to-all; copies are broadcast.

Transfers do not wait for each other, so the next chunk travels while this one is worked on.

Bytes for weights of P bytes and gradients of as many over N ranks: steps 2 and 4 send 3 P (N - 1) / N^2 from
each rank for rows, which is 1 / N of what FSDP2 itself sends for a forward and backward pass, and P (N - 1) /
N for copies.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from lowrise.distributed.sharding import ShardGroup, is_sharded, local, rows_of


def least_loaded(costs: Sequence[float], loads: list[float]) -> list[int]:
    """An owner for each cost, in the order given. `loads`, the work of each rank so far, is updated.

    The costliest comes first; equal ones in their order; of ranks with equal work the first is chosen.
    """
    ranks = [(load, rank) for rank, load in enumerate(loads)]
    heapq.heapify(ranks)
    owners = [0] * len(costs)
    for place in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, rank = heapq.heappop(ranks)
        owners[place] = rank
        heapq.heappush(ranks, (load + costs[place], rank))
    for load, rank in ranks:
        loads[rank] = load
    return owners


@dataclass(frozen=True)
class Parcel:
    """One unit on its way: parameters, gradients (None: zeros), and who owns it."""

    params: tuple[Tensor, ...]
    grads: tuple[Tensor | None, ...]
    owner: int


class Transfer:
    """Steps 2 and 4 for a chunk of units, all of whose parameters have one dtype and are shared by rows, or
    all copied; gradients likewise have one dtype.
    """

    def __init__(self, ranks: ShardGroup, parcels: Sequence[Parcel]) -> None:
        """Begins step 2."""
        self.ranks, self.parcels = ranks, list(parcels)
        self.mine = [p for p in self.parcels if p.owner == ranks.rank]
        self.by_rows = is_sharded(self.parcels[0].params[0])
        self.sent_bytes = 0
        self._works: list[dist.Work] = []
        self._arriving = [self._lend(_weights), self._lend(_gradients)] if self.by_rows else []
        self._wholes: list[list[Tensor]] = []
        self._returning: list[tuple[Tensor, list[Tensor]]] = []

    # --- step 2 -------------------------------------------------------------------------------------------

    def whole(self) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Whole weights and gradients of the units that this rank owns, in their order. Waits for them.

        Weights are to be written in place.
        """
        self._wait()
        if self.by_rows:
            self._wholes, grads = (self._assembled(buffer) for buffer in self._arriving)
        else:
            self._wholes = [list(parcel.params) for parcel in self.mine]
            grads = [_gradients(parcel) for parcel in self.mine]
        self._arriving = []
        return list(zip(self._wholes, grads, strict=True))

    def _lend(self, tensors_of: Callable[[Parcel], list[Tensor]]) -> Tensor:
        """Send this rank's rows to their owners; the buffer in which those of its own units arrive."""
        to = [
            [t for p in self.parcels if p.owner == k for t in tensors_of(p)] for k in range(self.ranks.size)
        ]
        coming = [sum(self._elements(p, source) for p in self.mine) for source in range(self.ranks.size)]
        return self._exchange(to, coming)

    def _assembled(self, buffer: Tensor) -> list[list[Tensor]]:
        """Whole tensors of each own unit from what every rank sent: the first rows first."""
        pieces: list[list[Tensor]] = []
        by_source = buffer.split(
            [sum(self._elements(p, k) for p in self.mine) for k in range(self.ranks.size)]
        )
        for source, sent in enumerate(by_source):
            pieces.append(list(sent.split([self._rows(p, source) * _width(p) for p in self._own_params()])))
        flat = [torch.cat(parts) for parts in zip(*pieces, strict=True)]
        wholes = iter(t.view(p.shape) for t, p in zip(flat, self._own_params(), strict=True))
        return [[next(wholes) for _ in parcel.params] for parcel in self.mine]

    # --- step 4 -------------------------------------------------------------------------------------------

    def give_back(self) -> None:
        """Begin to send the new weights of the own units to all ranks."""
        if not self.by_rows:
            self._broadcast()
            return
        size, new = self.ranks.size, [t for tensors in self._wholes for t in tensors]
        to = [[t[rows_of(t.shape[0], size, k)] for t in new] for k in range(size)]
        owned = [[p for p in self.parcels if p.owner == k] for k in range(size)]
        coming = [sum(self._elements(p, self.ranks.rank) for p in parcels) for parcels in owned]
        buffer = self._exchange(to, coming)
        self._returning = [(buffer, [local(t) for parcels in owned for p in parcels for t in p.params])]
        self._wholes = []

    def _broadcast(self) -> None:
        """Every owner's new weights in one flat tensor."""
        for owner in range(self.ranks.size):
            params = [t.detach() for p in self.parcels if p.owner == owner for t in p.params]
            if not params:
                continue
            mine = owner == self.ranks.rank
            elements = sum(t.numel() for t in params)
            flat = torch.cat([t.reshape(-1) for t in params]) if mine else params[0].new_empty(elements)
            work = dist.broadcast(flat, group=self.ranks.group, group_src=owner, async_op=True)
            assert work is not None
            self._works.append(work)
            if mine:
                self.sent_bytes += flat.nbytes * (self.ranks.size - 1)
            else:
                self._returning.append((flat, params))

    @torch.no_grad()
    def finish(self) -> None:
        """Wait for the new weights, and take them over."""
        self._wait()
        for buffer, params in self._returning:
            pieces = buffer.split([t.numel() for t in params])
            torch._foreach_copy_(params, [new.view(t.shape) for new, t in zip(pieces, params, strict=True)])
        self._returning = []

    # --- both ---------------------------------------------------------------------------------------------

    def _exchange(self, to: list[list[Tensor]], coming: list[int]) -> Tensor:
        """One all-to-all of the tensors for each rank, flat; `coming` elements from each rank."""
        outgoing = [t.reshape(-1) for tensors in to for t in tensors]
        example = _weights(self.parcels[0])[0] if not outgoing else outgoing[0]
        flat = torch.cat(outgoing) if outgoing else example.new_empty(0)
        counts = [sum(t.numel() for t in tensors) for tensors in to]
        buffer = torch.empty(sum(coming), dtype=flat.dtype, device=flat.device)
        work = dist.all_to_all_single(buffer, flat, coming, counts, group=self.ranks.group, async_op=True)
        assert work is not None
        self._works.append(work)
        self.sent_bytes += (flat.numel() - counts[self.ranks.rank]) * flat.itemsize
        return buffer

    def _wait(self) -> None:
        for work in self._works:
            work.wait()
        self._works = []

    def _own_params(self) -> list[Tensor]:
        return [p for parcel in self.mine for p in parcel.params]

    def _rows(self, param: Tensor, rank: int) -> int:
        rows = rows_of(param.shape[0], self.ranks.size, rank)
        return rows.stop - rows.start

    def _elements(self, parcel: Parcel, rank: int) -> int:
        """Of a unit's parameters, those in the rows of one rank."""
        return sum(self._rows(p, rank) * _width(p) for p in parcel.params)


def _weights(parcel: Parcel) -> list[Tensor]:
    return [local(p.detach()) for p in parcel.params]


def _gradients(parcel: Parcel) -> list[Tensor]:
    pairs = zip(parcel.params, parcel.grads, strict=True)
    return [torch.zeros_like(local(p.detach())) if g is None else local(g) for p, g in pairs]


def _width(param: Tensor) -> int:
    """Elements of one row."""
    return math.prod(param.shape[1:])
