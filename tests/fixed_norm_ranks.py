"""What ranks do in the test of norm-fixed weights: a few steps of one optimizer on tensors that ranks share
by rows, some of which have none, or of which each has a copy and one owner.
"""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.distributed as dist
from contracts.test_hyperball import SHAPES
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from lowrise.distributed import World
from lowrise.distributed.sharding import ShardGroup, whole
from lowrise.errors import UsageError
from lowrise.optim import OPTIMIZERS, AdamW, Optimizer
from lowrise.optim.engine import step

CASES = [
    (name, role, dtype)
    for name, kind in OPTIMIZERS.items()
    for role in sorted(kind.ball_roles & kind.roles)
    for dtype in ((torch.float64, torch.bfloat16) if kind is AdamW else (torch.float64,))
]
STEPS = 4
# Of 3 ranks the last has no row of the second matrix, and the last two none of the third.
UNEVEN = {"matrix": [(8, 6), (2, 8), (1, 6)], "factors": SHAPES["factors"]}


def tensors(role: str, t: int, dtype: torch.dtype) -> list[Tensor]:
    g = torch.Generator().manual_seed(50 + t)
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in UNEVEN[role]]


def build(name: str, role: str, params: list[nn.Parameter]) -> Optimizer:
    group = {"params": params, "role": role, "hyperball": True}
    return OPTIMIZERS[name]([group], lr=0.05, weight_decay=0.0, **({"level": 1} if name == "gwt" else {}))


def one_process(name: str, role: str, dtype: torch.dtype) -> list[Tensor]:
    params = [nn.Parameter(p) for p in tensors(role, 0, dtype)]
    optimizer = build(name, role, params)
    for t in range(1, STEPS):
        for p, grad in zip(params, tensors(role, t, dtype), strict=True):
            p.grad = grad
        optimizer.step()
    return [p.detach() for p in params]


def several(world: World, name: str, role: str, dtype: torch.dtype, way: str) -> list[Tensor]:
    mesh = init_device_mesh("cpu", (world.size,))

    def shared(tensor: Tensor) -> Tensor:
        return distribute_tensor(tensor, mesh, [Shard(0)]) if way == "rows" else tensor

    params = [nn.Parameter(shared(p)) for p in tensors(role, 0, dtype)]
    optimizer = build(name, role, params)
    if way == "copies":
        optimizer.share_work(ShardGroup(mesh.get_group(0), world.size, world.rank))
    for t in range(1, STEPS):
        for p, grad in zip(params, tensors(role, t, dtype), strict=True):
            p.grad = shared(grad)
        with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reduce:
            optimizer.step(grad_norm=1.0)
        # Rows of AdamW: three sums per matrix, all at once; before the first update one look for zeros.
        by_rows = way == "rows" and name == "adamw" and role == "matrix"
        parts = len(params)  # as `everything` lets one matrix be open at a time
        assert reduce.call_count == by_rows * parts + (way == "rows" and t == 1)
    return [whole(p.detach()).clone() for p in params]


def zeros_are_refused_on_all_ranks(world: World) -> None:
    """The only rows that are not zero, and zero ones, are another rank's."""
    mesh = init_device_mesh("cpu", (world.size,))
    for first_row, refused in ((1.0, False), (0.0, True)):
        W = torch.zeros(6, 4)
        W[0] = first_row
        p = nn.Parameter(distribute_tensor(W, mesh, [Shard(0)]))
        p.grad = distribute_tensor(torch.ones(6, 4), mesh, [Shard(0)])
        optimizer = build("muon", "matrix", [p])
        if refused:
            with pytest.raises(UsageError, match="is zero, and hyperball"):
                optimizer.step()
        else:
            optimizer.step()


def everything(world: World) -> dict[str, list[Tensor]]:
    zeros_are_refused_on_all_ranks(world)
    with mock.patch.object(step, "OPEN_ELEMENTS", 1):
        return {
            f"{name} {role} {dtype} {way}": several(world, name, role, dtype, way)
            for name, role, dtype in CASES
            for way in ("rows", "copies")
        }
