"""Which rows of a tensor a rank has, and who writes what.

A checkpoint knows three kinds of tensors:
1. plain, identical at every rank;
2. a `DTensor` that is sharded by rows, `Shard(0)`: rank k of K has rows [k c, (k + 1) c) of n, c = ceil(n /
   K), the last ranks fewer or none; with copies of all that, (Replicate(), Shard(0));
3. plain, at one rank only (with copies: one of each).

To the checkpoint all are the same thing: a **piece**, the rows from `start` on of a tensor of a whole
`shape`. A tensor without dimensions counts as one row.

Before anything is copied or written, every rank tells which pieces it has (names, shapes, dtypes, rows: no
values). From these, all ranks compute the same plan:
1. a piece that several ranks have is written by the one of them that has the fewest bytes to write so far;
2. if rank 0 has the whole of every tensor (one rank, or copies), it writes all: the **whole** form;
3. otherwise each rank writes its pieces: the **sharded** form; or, on request, all pieces are collected at
   rank 0, which writes the whole form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowrise.checkpoint.tensor_file import described, dtype_name
from lowrise.distributed.collectives import Words
from lowrise.distributed.sharding import is_sharded, rows_of
from lowrise.errors import LowriseError

Parts = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Piece:
    """Rows [start, start + rows) of a tensor of shape `shape`; `local` are their live values."""

    local: Tensor
    start: int
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        return row_count(self.local.shape)


def row_count(shape: Sequence[int]) -> int:
    """Rows of a shape: its first dimension, or 1 where it has none."""
    return shape[0] if shape else 1


@torch.no_grad()
def piece_of(name: str, tensor: Tensor) -> Piece:
    """What this rank has of a tensor. Raises `LowriseError` for a `DTensor` that is laid out in another
    way."""
    shape = tuple(tensor.shape)
    if not is_sharded(tensor):
        return Piece(tensor.detach(), 0, shape)
    from torch.distributed.tensor import Shard

    sharded = [(axis, p) for axis, p in enumerate(tensor.placements) if not p.is_replicate()]
    start = 0
    for axis, placement in sharded:
        if len(sharded) > 1 or type(placement) is not Shard or placement.dim != 0:
            raise LowriseError(
                f"{name} is laid out as {tensor.placements}; a checkpoint takes copies and one Shard(0)."
            )
        mesh = tensor.device_mesh
        start = rows_of(shape[0], mesh.size(axis), mesh.get_local_rank(axis)).start
    return Piece(tensor.to_local().detach(), start, shape)


@dataclass(frozen=True)
class Share:
    """A piece and the rank that writes it."""

    start: int
    rows: int
    writer: int


@dataclass(frozen=True)
class Planned:
    """A tensor of the checkpoint: what it is as a whole (on the device "meta"), and its pieces by rows."""

    whole: Tensor
    shares: tuple[Share, ...]


@dataclass(frozen=True)
class Plan:
    """`tensors[part][name]`; in which form they are written."""

    tensors: dict[str, dict[str, Planned]]
    sharded: bool
    """Every rank writes files of its own."""
    collected: bool
    """Rank 0 writes pieces that other ranks have."""

    @property
    def by_all(self) -> bool:
        """Whether ranks other than 0 have something to do."""
        return self.sharded or self.collected

    @torch.no_grad()
    def pieces(self, parts: Parts, rank: int) -> dict[str, dict[str, Tensor]]:
        """The live values that this rank writes, or sends to rank 0."""
        return {
            part: {
                name: piece_of(name, parts[part][name]).local
                for name, planned in tensors.items()
                if any(share.writer == rank for share in planned.shares)
            }
            for part, tensors in self.tensors.items()
        }


def agree(parts: Parts, words: Words, *, collect: bool = False) -> Plan:
    """The plan for these parts, the same at every rank. Collective over the ranks of `words`.

    Raises `LowriseError` at all ranks for tensors that are not the same thing at all of them, or of which
    rows are missing.
    """
    told = words.together(lambda: {part: _told(tensors) for part, tensors in parts.items()})
    alone = all(
        _is_whole(told[0].get(part, {}).get(name)) for one in told for part in one for name in one[part]
    )
    load = [0] * len(told)
    tensors: dict[str, dict[str, Planned]] = {}
    for part in parts:
        names = dict.fromkeys(name for one in told for name in one.get(part, {}))
        tensors[part] = {
            name: _planned(name, [one.get(part, {}).get(name) for one in told], load, alone or collect)
            for name in names
        }
    return Plan(tensors, sharded=not (alone or collect), collected=collect and not alone)


def _told(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Name -> [dtype, whole shape, first row, rows] of this rank's pieces."""
    pieces = {name: piece_of(name, tensor) for name, tensor in tensors.items()}
    return {
        name: [dtype_name(name, piece.local.dtype), list(piece.shape), piece.start, piece.rows]
        for name, piece in pieces.items()
    }


def _is_whole(told: list[Any] | None) -> bool:
    """Whether a rank has all rows of a tensor."""
    return told is not None and told[3] == row_count(told[1])


def _planned(name: str, told: list[list[Any] | None], load: list[int], at_rank_0: bool) -> Planned:
    """One tensor, of which rank k has told[k]; `load` counts the bytes given to each rank."""
    kinds = {(dtype, tuple(shape)) for entry in told if entry for dtype, shape, _, _ in [entry]}
    if len(kinds) > 1:
        shown = " and ".join(f"{shape} {dtype}" for dtype, shape in sorted(kinds))
        raise LowriseError(f"The ranks have drifted apart: {name} is {shown}, so nothing is saved.")
    dtype, shape = kinds.pop()
    whole = described(dtype, list(shape))
    owners: dict[tuple[int, int], list[int]] = {}
    for rank, entry in enumerate(told):
        if entry and (entry[3] or not row_count(shape)):
            owners.setdefault((entry[2], entry[3]), []).append(rank)
    row_bytes = whole.element_size() * math.prod(shape[1:])
    shares, end = [], 0
    for (start, rows), ranks in sorted(owners.items()):
        if start != end:
            break
        writer = 0 if at_rank_0 and 0 in ranks else min(ranks, key=lambda rank: (load[rank], rank))
        load[writer] += rows * row_bytes
        shares.append(Share(start, rows, writer))
        end = start + rows
    if end != row_count(shape) or len(shares) != len(owners):
        raise LowriseError(
            f"The ranks have rows {[[a, a + b] for a, b in sorted(owners)]} of the {row_count(shape)} of "
            f"{name}: they do not make one whole, so nothing is saved."
        )
    return Planned(whole, tuple(shares))
