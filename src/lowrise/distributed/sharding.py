"""Parameters that ranks share by rows: torch's `DTensor`, as FSDP2 (`fully_shard`) makes them.

Of M rows, N ranks have ceil(M / N) each, the last ones fewer or none (`torch.chunk`). On a mesh of two
dimensions (HSDP) the first is of copies, the last of shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowrise.errors import UsageError

if TYPE_CHECKING:  # half a second, which nothing needs that is not sharded
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class ShardGroup:
    """The ranks that have one copy of a model between them."""

    group: dist.ProcessGroup
    size: int
    rank: int
    """Of this process within the group."""


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether ranks share the tensor's rows."""
    if type(tensor) in (Tensor, nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def has_copies(tensor: Tensor) -> bool:
    """Whether more than one rank has the same values: of a plain tensor all, of one shared by rows those of a
    mesh with copies (HSDP)."""
    return not is_sharded(tensor) or tensor.device_mesh.ndim > 1


def local(tensor: Tensor) -> Tensor:
    """This rank's rows, sharing their storage; a tensor that is not shared is itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All rows, gathered from all ranks, which must all call this; a tensor that is not shared is itself."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def rows_of(size: int, ranks: int, rank: int) -> slice:
    """The rows of one rank."""
    each = -(-size // ranks)
    return slice(min(size, rank * each), min(size, (rank + 1) * each))


def shard_group(tensor: Tensor) -> ShardGroup:
    """The ranks that share one tensor; `UsageError` for a tensor that is not split along its rows alone."""
    from torch.distributed.tensor import Shard

    assert is_sharded(tensor)
    *copies, last = tensor.placements
    if not isinstance(last, Shard) or last.dim != 0 or any(not p.is_replicate() for p in copies):
        raise UsageError(
            f"A parameter of shape {tuple(tensor.shape)} is spread over ranks as {tensor.placements}; "
            "optimizers move parameters that are split by rows (Shard(0), as fully_shard does), on the last "
            "dimension of the mesh."
        )
    mesh, dim = tensor.device_mesh, tensor.device_mesh.ndim - 1
    return ShardGroup(mesh.get_group(dim), mesh.size(dim), mesh.get_local_rank(dim))


def own_rows(tensor: Tensor, full: Tensor) -> Tensor:
    """The rows of `full` that this rank has of `tensor`, which is of the same shape."""
    ranks = shard_group(tensor)
    return full[rows_of(tensor.shape[0], ranks.size, ranks.rank)]


@torch.no_grad()
def copy_whole_(tensor: Tensor, full: Tensor) -> None:
    """Write a tensor, whole or shared alike, into one that may be shared: each rank takes its rows."""
    if is_sharded(tensor) and not is_sharded(full):
        full = own_rows(tensor, full)
    local(tensor).copy_(local(full))


def agreed_seed(tensor: Tensor) -> int:
    """A seed from torch's global generator of the first of the ranks that share a tensor, the same at all."""
    assert is_sharded(tensor)
    mesh = tensor.device_mesh
    seed = torch.randint(2**62, ()).to(mesh.device_type)
    for dim in reversed(range(mesh.ndim)):  # within each copy, then from the first copy to the others
        group = mesh.get_group(dim)
        dist.broadcast(seed, dist.get_global_rank(group, 0), group)
    return int(seed)


@contextmanager
def whole_parameters(module: nn.Module, *, read: bool = True, write: bool = True) -> Iterator[None]:
    """Within the block the module's own shared parameters are whole, plain ones, the same at every rank.

    With `read` False they have no values; with `write` each rank takes its rows back at the end. All ranks
    must enter the block together. Parameters of submodules are left alone.
    """
    shared: dict[str, Any] = {name: p for name, p in module.named_parameters(recurse=False) if is_sharded(p)}
    if not shared:
        yield
        return
    for name, p in shared.items():
        full = whole(p.detach()) if read else torch.empty(p.shape, dtype=p.dtype, device=p.device)
        module._parameters[name] = nn.Parameter(full, requires_grad=p.requires_grad)
    try:
        yield
        if write:
            for name, p in shared.items():
                copy_whole_(p.detach(), module.get_parameter(name).detach())
    finally:
        module._parameters.update(shared)
