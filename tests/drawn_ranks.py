"""Layers that get their first values after ranks share them: what each rank does."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lowrise.distributed import World
from lowrise.distributed.sharding import whole
from lowrise.layers import LAYERS, factorize


def on_meta(layer: str) -> nn.Module:
    with torch.device("meta"):
        return factorize(nn.Sequential(nn.Linear(24, 20, bias=True)), layer=layer, rank=6)


def drawn(world: World, shape: tuple[int, ...], seed: int | None) -> dict[str, dict[str, Tensor]]:
    """Every kind of layer, sharded on a mesh of `shape` and then drawn from a seed, or (None) from global
    generators that stand differently at each rank: its tensors as a whole, and this rank's buffers.
    """
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copies", "shards")[-len(shape) :])
    return {name: _drawn(on_meta(name), mesh, seed, world.rank) for name in LAYERS}


def _drawn(
    model: nn.Module, mesh: torch.distributed.DeviceMesh, seed: int | None, rank: int
) -> dict[str, Tensor]:
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    torch.manual_seed(rank)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    model.get_submodule("0").reset_parameters(generator)
    return {key: whole(t.detach()) for key, t in model.state_dict().items()}
