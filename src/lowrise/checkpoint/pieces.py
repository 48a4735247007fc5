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

import math
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrise.errors import LowriseError


@dataclass(frozen=True)
class Piece:
    """Rows [start, start + rows) of a tensor of shape `shape`; `local` are their live values."""

    local: Tensor
    start: int
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        return rows_of(tuple(self.local.shape))


def rows_of(shape: tuple[int, ...]) -> int:
    """Rows of a shape: its first dimension, or 1 where it has none."""
    return shape[0] if shape else 1


@torch.no_grad()
def piece_of(name: str, tensor: Tensor) -> Piece:
    """What this rank has of a tensor. Raises `LowriseError` for a `DTensor` that is laid out in another
    way."""
    tensors = sys.modules.get("torch.distributed.tensor")  # not loaded: there is no DTensor
    if tensors is None or not isinstance(tensor, tensors.DTensor):
        return Piece(tensor.detach(), 0, tuple(tensor.shape))
    shape, mesh = tuple(tensor.shape), tensor.device_mesh
    start = 0
    sharded = [axis for axis, placement in enumerate(tensor.placements) if not placement.is_replicate()]
    if sharded:
        (axis, *more), placement = sharded, tensor.placements[sharded[0]]
        if more or type(placement) is not tensors.Shard or placement.dim != 0:
            raise LowriseError(
                f"{name} is laid out as {tensor.placements}; a checkpoint takes copies and one Shard(0)."
            )
        chunk = math.ceil(shape[0] / mesh.size(axis))
        start = min(shape[0], mesh.get_local_rank(axis) * chunk)
    return Piece(tensor.to_local().detach(), start, shape)
