"""Gradients that an optimizer cannot use, and how their units are left as they were.

A gradient that is not finite, or so large that its square is not, would make a second moment inf or NaN for
ever, and some rules would carry that to other matrices. So, at each step and for each unit:

1. n = ||all gradients of the unit||_F, in the dtype of the state; of shared rows summed over ranks, so that
   all decide alike (one all-reduce of 8 bytes, and one of 8 bytes per unit where that does not answer)
2. n <= limit (2^54 = 1.8e16 in float32, 2^502 = 1.3e151 in float64; NaN is not): the unit is moved. Else it
   is left alone: weights, moments and counter stay, bit by bit. It is counted.

The limit is the root of the largest number, less a factor of 1024 for what rules do with a gradient before
they square it (a random projection to rank 1 may lengthen it by the root of its dimension). A norm that
overflows is beyond it too.

Reading n waits for nothing on a CPU, where one norm of all gradients together answers for all units, and
only if that is too large, units are looked at one by one, and taken out of the step. Elsewhere reading would
wait for the device:

3. a mask stays on the device. The unit goes through its rule with gradients of zero, so that nothing that is
   not finite meets another unit of the batch, and `torch.where` puts old weights and state back
4. its counter, on the CPU, is put back when the flags have come: at the next step, or when state is read

Steps 3 and 4 cost copies of weights and state of at most `KEPT_ELEMENTS` elements at a time, laid one after
the other, so that a fixed number of operations serves any number of units. Whoever knows that the norm of all
gradients together is below the limit, as after clipping, tells `step`, and all of this falls away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lowrise.distributed.sharding import ShardGroup, is_sharded, local
from lowrise.optim.engine.ownership import here
from lowrise.optim.engine.units import Unit, chunked, state_dtype

LIMITS: dict[torch.dtype, float] = {torch.float32: 2.0**54, torch.float64: 2.0**502}

# Most elements of weights and state that are copied at once for step 3 (256 MiB in float32; one unit at
# least).
KEPT_ELEMENTS = 1 << 26

Params = tuple[Tensor, ...]


def usable(norm: float, dtype: torch.dtype = torch.float32) -> bool:
    """Whether gradients of this norm may be used with state of this dtype."""
    return norm <= LIMITS[dtype]


def unit_dtype(params: Iterable[Tensor]) -> torch.dtype:
    """The narrowest dtype of the state of a unit."""
    wide = all(state_dtype(p) == torch.float64 for p in params)
    return torch.float64 if wide else torch.float32


def reads_at_once(device: torch.device) -> bool:
    """Whether a number on the device can be read without waiting for other work."""
    return device.type == "cpu"


class _Kind(NamedTuple):
    """Units whose norms are found, summed and read together."""

    device: torch.device
    dtype: torch.dtype
    size: int
    shared: bool


class _Pending(NamedTuple):
    """Flags of one step on their way to the CPU (True: moved), and the counters of each unit."""

    flags: Tensor
    arrived: torch.cuda.Event | None
    counters: list[list[Tensor]]


class Guard:
    """Which units the present step leaves alone, and how many were so far."""

    def __init__(self) -> None:
        self.skipped = 0
        self._pending: list[_Pending] = []
        self._masks: dict[int, Tensor] = {}  # id of a unit's first parameter -> 0-dim bool, True: moved

    def sift(
        self,
        units: Sequence[Params],
        states: Mapping[Tensor, Mapping[str, Tensor]],
        ranks: ShardGroup | None,
    ) -> set[int]:
        """Steps 1 and 2 for all units of a step, with and without gradients. Returns the ids of the first
        parameters of those to be left out; others are masked until `end`.

        Of several ranks all must call this, with the same units.
        """
        out: set[int] = set()
        if _all_usable(units, ranks):
            return out
        for same, sound in _judged(units, ranks):
            if reads_at_once(sound.device):
                bad = [unit for unit, good in zip(same, sound.tolist(), strict=True) if not good]
                out |= {id(unit[0]) for unit in bad}
                self.skipped += len(bad)
                continue
            self._masks.update({id(unit[0]): flag for unit, flag in zip(same, sound.unbind(), strict=True)})
            counters = [[states[p]["step"] for p in unit] for unit in same]
            self._pending.append(_sent(sound, counters))
        return out

    def protected(self, units: list[Unit], wholes: Mapping[int, Tensor] | None) -> Iterator[list[Unit]]:
        """Parts of the units to be moved one after the other, each before the next is asked for; step 3.

        `wholes`: matrices in the place of shared parameters, by the id of these.
        """
        masks = {id(u): self._masks[id(u.params[0])] for u in units if id(u.params[0]) in self._masks}
        if not masks:
            yield units
            return
        for part in chunked(units, _elements, KEPT_ELEMENTS):
            masked = [u for u in part if id(u) in masks]
            written = _Masked.of((t, masks[id(u)]) for u in masked for t in _written(here(u, wholes)))
            before = [kind.flat() for kind in written]
            safe = _without_gradients(masked, [masks[id(u)] for u in masked])
            yield [safe.get(id(u), u) for u in part]
            for kind, old in zip(written, before, strict=True):
                new = kind.flat()
                kind.write(torch.where(kind.mask(), new, old, out=new))

    def end(self) -> None:
        """Of the step."""
        self._masks = {}

    def settle(self) -> None:
        """Step 4: counters of units that earlier steps left alone go back by one. Waits for the flags of
        these steps, which the device knows before it moves anything.
        """
        pending, self._pending = self._pending, []
        for flags, arrived, counters in pending:
            if arrived is not None:
                arrived.synchronize()
            skipped = [own for own, good in zip(counters, flags.tolist(), strict=True) if not good]
            self.skipped += len(skipped)
            for counter in (c for own in skipped for c in own):
                counter.sub_(1.0)


def _all_usable(units: Sequence[Params], ranks: ShardGroup | None) -> bool:
    """Whether the norm of all gradients together is below the limit, where it can be read at once: the common
    case, in one number.
    """
    own, shared = [], []
    for p in (p for unit in units for p in unit):
        if not reads_at_once(p.device):
            return False
        if is_sharded(p):
            shared.append(p)
        elif p.grad is not None:
            own.append(p.grad)
    square = _squared_norm(own)
    if shared and ranks is not None:
        rows = torch.tensor(
            _squared_norm([local(p.grad) for p in shared if p.grad is not None]), dtype=torch.float64
        )
        dist.all_reduce(rows, group=ranks.group)
        square += float(rows)
    return usable(math.sqrt(square)) if square >= 0.0 else False


def _squared_norm(grads: Sequence[Tensor]) -> float:
    """Of all tensors together, from norms in float32 (float64 for float64)."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for grad in grads:
        by_dtype.setdefault(grad.dtype, []).append(grad)
    total = 0.0
    for dtype, same in by_dtype.items():
        norms = _norms(same, torch.float64 if dtype == torch.float64 else torch.float32)
        total += float(torch.stack(norms).double().square_().sum())
    return total


def _norms(grads: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Their 2-norms, summed in `dtype`. With a dtype torch goes through a CPU tensor at two thirds of the
    speed, so it is given one only where that is another.
    """
    same = all(grad.dtype == dtype for grad in grads)
    return torch._foreach_norm(grads, 2) if same else torch._foreach_norm(grads, 2, dtype)


def _judged(units: Sequence[Params], ranks: ShardGroup | None) -> Iterator[tuple[list[Params], Tensor]]:
    """Units of one kind with flags (len,) on their device, True where their gradients may be used or are
    none.
    """
    kinds: dict[_Kind, list[Params]] = {}
    for unit in units:
        shared = is_sharded(unit[0])
        if shared or any(p.grad is not None for p in unit):
            kind = _Kind(unit[0].device, unit_dtype(unit), len(unit), shared)
            kinds.setdefault(kind, []).append(unit)
    squares = {kind: _squared_norms(same, kind.dtype) for kind, same in kinds.items()}
    over_ranks = [square for kind, square in squares.items() if kind.shared]
    if over_ranks and ranks is not None:
        _sum_(over_ranks, ranks)
    for kind, same in kinds.items():
        yield same, squares[kind] <= LIMITS[kind.dtype] ** 2


def _squared_norms(units: Sequence[Params], dtype: torch.dtype) -> Tensor:
    """n^2 of step 1 (len,) for units of one size and device; of shared parameters, this rank's rows."""
    grads = [None if p.grad is None else local(p.grad) for unit in units for p in unit]
    zero = torch.zeros((), dtype=dtype, device=units[0][0].device)
    norms = [zero] * len(grads)
    by_dtype: dict[torch.dtype, list[int]] = {}
    for i, grad in enumerate(grads):
        if grad is not None:
            by_dtype.setdefault(grad.dtype, []).append(i)
    for places in by_dtype.values():
        found = _norms([g for g in map(grads.__getitem__, places) if g is not None], dtype)
        for i, norm in zip(places, found, strict=True):
            norms[i] = norm
    return torch.stack(norms).view(len(units), -1).square_().sum(dim=1)


def _sum_(squares: Sequence[Tensor], ranks: ShardGroup) -> None:
    """Over ranks, in place."""
    flat = torch.cat([s.double() for s in squares])
    dist.all_reduce(flat, group=ranks.group)
    torch._foreach_copy_(list(squares), list(flat.split([len(s) for s in squares])))


def _sent(flags: Tensor, counters: list[list[Tensor]]) -> _Pending:
    """The flags begin their way to the CPU; nothing waits."""
    if flags.device.type != "cuda":
        return _Pending(flags, None, counters)
    on_cpu = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
    on_cpu.copy_(flags, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return _Pending(on_cpu, arrived, counters)


def _written(unit: Unit) -> Iterator[Tensor]:
    """What a rule may write into."""
    yield from (p.detach() for p in unit.params)
    for state in unit.states:
        yield from (tensor for key, tensor in state.items() if key != "step")


def _elements(unit: Unit) -> int:
    return unit.elements + sum(t.numel() for state in unit.states for t in state.values())


class _Masked(NamedTuple):
    """Tensors of one dtype and device, each with a mask (0-dim), handled as one flat tensor: the number of
    operations does not depend on theirs.
    """

    tensors: list[Tensor]
    masks: list[Tensor]

    @classmethod
    def of(cls, pairs: Iterable[tuple[Tensor, Tensor]]) -> list[_Masked]:
        kinds: dict[tuple[Any, ...], _Masked] = {}
        for tensor, mask in pairs:
            kind = kinds.setdefault((tensor.dtype, tensor.device), cls([], []))
            kind.tensors.append(tensor)
            kind.masks.append(mask)
        return list(kinds.values())

    def parts(self, flat: Tensor) -> list[Tensor]:
        """A flat tensor cut into their shapes."""
        cuts = flat.split([t.numel() for t in self.tensors])
        return [cut.view(t.shape) for cut, t in zip(cuts, self.tensors, strict=True)]

    def flat(self) -> Tensor:
        """All of them, one after the other."""
        first = self.tensors[0]
        flat = first.new_empty(sum(t.numel() for t in self.tensors))
        torch._foreach_copy_(self.parts(flat), self.tensors)
        return flat

    def write(self, flat: Tensor) -> None:
        torch._foreach_copy_(self.tensors, self.parts(flat))

    def mask(self) -> Tensor:
        """The mask of each element, as long as `flat`."""
        sizes = [t.numel() for t in self.tensors]
        counts = torch.tensor(sizes).to(self.tensors[0].device, non_blocking=True)
        return torch.repeat_interleave(torch.stack(self.masks), counts, output_size=sum(sizes))


def _without_gradients(units: Sequence[Unit], masks: Sequence[Tensor]) -> dict[int, Unit]:
    """By the id of each unit, the unit with gradients of zero where its mask is False."""
    safe: dict[int, Tensor] = {}
    for kind in _Masked.of((g, mask) for u, mask in zip(units, masks, strict=True) for g in u.grads):
        flat = kind.flat()
        cleared = kind.parts(torch.where(kind.mask(), flat, 0.0))
        safe.update({id(g): new for g, new in zip(kind.tensors, cleared, strict=True)})
    return {id(u): replace(u, grads=tuple(safe[id(g)] for g in u.grads)) for u in units}
