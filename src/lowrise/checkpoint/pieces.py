"""Which rows of a tensor a rank has.

A checkpoint knows three kinds of tensors:
1. plain, alike at every rank;
2. a `DTensor` that is sharded by rows, `Shard(0)`: rank k of K has rows [k c, (k + 1) c) of n, c = ceil(n /
   K), the last ranks fewer or none; with copies of all that, (Replicate(), Shard(0));
3. plain, at one rank only (with copies: one of each).

To the checkpoint all are the same thing: a **piece**, the rows from `start` on of a tensor of a whole
`shape`. A tensor without dimensions counts as one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from lowrise.distributed.sharding import rows_of
from lowrise.errors import LowriseError


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
    if not isinstance(tensor, DTensor):
        return Piece(tensor.detach(), 0, shape)
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
