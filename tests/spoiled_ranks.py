"""What ranks do in the test of bad gradients: a few steps of one optimizer on tensors that ranks share by
rows, or of which each has a copy and one owner.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from contracts.test_optimizers import SHAPES, build, make_params
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from lowrise.distributed import World
from lowrise.distributed.sharding import ShardGroup, whole
from lowrise.optim import OPTIMIZERS
from lowrise.optim.engine import guard
from lowrise.optim.engine.options import UNIT_SIZE

WAYS = ("rows", "copies")
# Spoiled in update 2 of 4 (from 0): the last entry of the last tensor, which one rank has alone.
SPOILED = 2
BAD = {"nan": float("nan"), "huge": 1e30}
CASES = [(name, role) for name in OPTIMIZERS for role in sorted({*OPTIMIZERS[name].roles, "other"})]


def gradients(role: str, t: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(50 + t)
    return [torch.randn(shape, generator=g) for shape in SHAPES[role] if shape]


def named_tensors(role: str) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in make_params(role) if p.ndim]


def one_process(name: str, role: str) -> dict[str, Tensor]:
    """The weights and counters where the unit has no gradient in that update."""
    named = named_tensors(role)
    optimizer = build(name, role, named, {})
    for t in range(4):
        for (_, p), grad in zip(named, gradients(role, t), strict=True):
            p.grad = grad
        if t == SPOILED:
            for _, p in named[-UNIT_SIZE[role] :]:
                p.grad = None
        optimizer.step()
    return _ends(optimizer, named)


def _ends(optimizer: Any, named: list[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    weights = {key: whole(p.detach()).clone() for key, p in named}
    return weights | {f"{key}.step": optimizer.state[p]["step"].clone() for key, p in named}


def several(world: World, name: str, role: str, way: str, bad: float) -> dict[str, Tensor]:
    mesh = init_device_mesh("cpu", (world.size,))

    def shared(tensor: Tensor) -> Tensor:
        return distribute_tensor(tensor, mesh, [Shard(0)]) if way == "rows" else tensor

    named = [(key, nn.Parameter(shared(p.detach()))) for key, p in named_tensors(role)]
    optimizer = build(name, role, named, {})
    if way == "copies":
        optimizer.share_work(ShardGroup(mesh.get_group(0), world.size, world.rank))
    for t in range(4):
        grads = gradients(role, t)
        if t == SPOILED:
            grads[-1].view(-1)[-1] = bad
        for (_, p), grad in zip(named, grads, strict=True):
            p.grad = shared(grad)
        with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reduce:
            optimizer.step(grad_norm=None if t else 100.0)
        # None where the norm is known, one for all units together, a second one for each of them.
        asked = 2 if t == SPOILED and guard.reads_at_once(named[0][1].device) else min(t, 1)
        assert reduce.call_count == (asked if way == "rows" else 0)
    assert optimizer.skipped_updates() == 1
    for key, tensor in optimizer.named_state().items():
        assert whole(tensor).isfinite().all(), key
    return _ends(optimizer, named)


def everything(world: World) -> dict[str, dict[str, Tensor]]:
    results = {}
    for masked in (False, True):
        with mock.patch.object(guard, "reads_at_once", return_value=not masked):
            for name, role in CASES:
                for way in WAYS:
                    for what, bad in BAD.items():
                        key = f"{name} {role} {way} {what} {'masked' if masked else 'left out'}"
                        results[key] = several(world, name, role, way, bad)
    return results
