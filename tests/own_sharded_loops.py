"""Loops of the user's own around `fully_shard`: what each rank does in tests of them. Layers that get their
first values after they were sharded; checkpoints by torch's own `torch.distributed.checkpoint`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

import lowrise
from lowrise.distributed import World
from lowrise.distributed.sharding import whole
from lowrise.layers import LAYERS, factorize
from lowrise.model import LlamaConfig, build_model
from lowrise.model.loss import next_token_loss
from lowrise.optim import OPTIMIZERS

CONFIG = LlamaConfig.preset("nano", vocab_size=300)
# What an optimizer moves, where that is not the dense weights.
MOVES = {"spectron": "lowrank", "loramuon": "lowrank", "loro": "lowrank", "tsvd": "svd", "relora": "lora"}


def on_meta(layer: str) -> nn.Module:
    with torch.device("meta"):
        return factorize(nn.Sequential(nn.Linear(24, 20, bias=True)), layer=layer, rank=6)


def drawn(world: World, shape: tuple[int, ...], seed: int | None) -> dict[str, dict[str, Tensor]]:
    """Every kind of layer, sharded on a mesh of `shape` and then drawn from a seed, or (None) from global
    generators that stand differently at each rank: its tensors as a whole, and this rank's buffers.
    """
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copies", "shards")[-len(shape) :])
    return {name: _drawn(on_meta(name), mesh, seed, world.rank) for name in LAYERS}


def _drawn(model: nn.Module, mesh: DeviceMesh, seed: int | None, rank: int) -> dict[str, Tensor]:
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    torch.manual_seed(rank)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    model.get_submodule("0").reset_parameters(generator)
    return {key: whole(t.detach()) for key, t in model.state_dict().items()}


def taken_over(world: World, weight: Tensor, bias: Tensor) -> dict[str, dict[str, Tensor]]:
    """Every kind of layer, sharded, after `load_dense_`: its tensors as a whole."""
    found = {}
    for name in LAYERS:
        model = on_meta(name)
        fully_shard(model, mesh=init_device_mesh("cpu", (world.size,)))
        model.to_empty(device="cpu")
        layer = model.get_submodule("0")
        layer.reset_parameters(torch.Generator().manual_seed(5))
        layer.load_dense_(weight, bias)
        found[name] = {key: whole(t.detach()) for key, t in model.state_dict().items()}
    return found


def loop(name: str, seed: int, world: World) -> tuple[nn.Module, Any]:
    """A small model, sharded, and its optimizer, as a loop of the user's own makes them."""
    layer = MOVES.get(name, "dense")
    model = build_model(CONFIG, layer=layer, rank=None if layer == "dense" else 8, seed=seed)
    mesh = init_device_mesh("cpu", (world.size,))
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    rule = OPTIMIZERS[name]
    return model, rule(lowrise.param_groups(model, lr=1e-2, roles=rule.roles), lr=1e-2)


def advance(model: nn.Module, optimizer: Any, world: World, steps: range) -> None:
    for step in steps:
        tokens = torch.randint(0, 300, (4, 17), generator=torch.Generator().manual_seed(step))
        next_token_loss(model, tokens[world.share(4)]).backward()
        optimizer.step()
        optimizer.zero_grad()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(p.detach()).clone() for name, p in model.named_parameters()}


def save_by_torch(world: World, folder: Path) -> dict[str, dict[str, Tensor]]:
    """Three updates by each optimizer, a checkpoint, two more: the weights after them."""
    ends = {}
    for name in OPTIMIZERS:
        model, optimizer = loop(name, 0, world)
        advance(model, optimizer, world, range(3))
        dcp.save(_everything(model, optimizer), checkpoint_id=folder / name)
        advance(model, optimizer, world, range(3, 5))
        ends[name] = weights(model)
    return ends


def load_by_torch(world: World, folder: Path) -> dict[str, dict[str, Tensor]]:
    """The checkpoints in other models with new optimizers, and two updates more."""
    ends = {}
    for name in OPTIMIZERS:
        model, optimizer = loop(name, 1, world)
        loaded = _everything(model, optimizer)
        dcp.load(loaded, checkpoint_id=folder / name)
        states.set_model_state_dict(model, loaded["model"])
        states.set_optimizer_state_dict(model, optimizer, loaded["optimizer"])
        advance(model, optimizer, world, range(3, 5))
        ends[name] = weights(model)
    return ends


def _everything(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    return {
        "model": states.get_model_state_dict(model),
        "optimizer": states.get_optimizer_state_dict(model, optimizer),
    }
