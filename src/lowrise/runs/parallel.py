"""From `[parallel]` to a model and an optimizer that ranks share.

"ddp": every rank has all weights. "fsdp": ranks share them by rows; "hsdp": the ranks of each copy do, and
there are several copies. Small parameters are copies in any case (`parallel.replicate_below`): sharing
norms by rows saves nothing and leaves some ranks without a row. So are the parameters of layers that drop or
resize some in mid-run (a guide, an adaptive rank), since FSDP2's units are fixed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn

from lowrise.config import RunConfig
from lowrise.distributed import World
from lowrise.distributed.fsdp import CommStats, mesh_of, shard_model
from lowrise.distributed.sharding import ShardGroup
from lowrise.errors import UsageError
from lowrise.layers.base import LowRankLayer, is_adaptive
from lowrise.model import Llama
from lowrise.optim import Optimizer
from lowrise.runs.build import model_from


@dataclass(frozen=True)
class Shared:
    """A model, and what its weights cause between ranks."""

    model: Llama
    ranks: ShardGroup | None = None
    """Those that have one copy between them, or whose copies are alike; None for one rank."""
    traffic: CommStats = field(default_factory=CommStats)


def shares_rows(config: RunConfig, world: World) -> bool:
    """Whether ranks share weights by rows."""
    return world.size > 1 and config.parallel.data in ("fsdp", "hsdp")


def shared_model(config: RunConfig, vocab_size: int, world: World, device: torch.device) -> Shared:
    """The model with its first weights, which do not depend on the ranks. All ranks must call it."""
    if world.size == 1:
        return Shared(model_from(config, vocab_size, device))
    if not shares_rows(config, world):
        assert dist.group.WORLD is not None
        everyone = ShardGroup(dist.group.WORLD, world.size, world.rank)
        return Shared(model_from(config, vocab_size, device), everyone)
    model = model_from(config, vocab_size, torch.device("meta"))
    mesh = mesh_of(world, device, shards_of_a_copy(config, world))
    narrow = torch.bfloat16 if config.parallel.param_dtype == "bfloat16" else None
    copies = copied_parameters(model, config.parallel.replicate_below)
    blocks = list(model.model.layers)
    traffic = shard_model(model, blocks, mesh, keep_whole=copies, gather_dtype=narrow)
    model.to_empty(device=device)
    model.init_weights(config.seed)
    dim = mesh.ndim - 1
    return Shared(model, ShardGroup(mesh.get_group(dim), mesh.size(dim), mesh.get_local_rank(dim)), traffic)


def shards_of_a_copy(config: RunConfig, world: World) -> int:
    """Ranks that have one copy of the model between them."""
    if config.parallel.data == "fsdp":
        return world.size
    return config.parallel.shard_degree or world.local_size


def copied_parameters(model: nn.Module, below: int) -> set[nn.Parameter]:
    """Those that are not shared by rows: small ones, and all of a layer that may drop or resize some."""
    copied = {p for p in model.parameters() if p.numel() < below}
    for module in model.modules():
        guided = isinstance(module, LowRankLayer) and bool(module.guide_parameters())
        if guided or is_adaptive(module):
            copied |= set(module.parameters())
    return copied


def share_work(config: RunConfig, optimizer: Optimizer, ranks: ShardGroup | None) -> None:
    """Let each matrix of which there are copies be moved by one rank, where the configuration says so."""
    if ranks is not None and config.parallel.distribute_optimizer:
        optimizer.share_work(ranks)


def check_world(config: RunConfig, world: World) -> None:
    """Raise `UsageError` for a batch that N ranks cannot share evenly, and for what one rank alone can do."""
    train, size = config.train, world.size
    if train.global_batch_size % size:
        raise UsageError(
            f"train.global_batch_size = {train.global_batch_size} is the batch of an update over all ranks, "
            f"and {size} ranks cannot share it evenly: set it to a multiple of {size}, or start another "
            "number of ranks."
        )
    parallel = config.parallel
    if parallel.param_dtype == "bfloat16" and train.precision != "bfloat16":
        raise UsageError(
            f'parallel.param_dtype = "bfloat16" goes with bfloat16 arithmetic, and train.precision is '
            f'"{train.precision}": set it to "bfloat16", or gather in "float32".'
        )
    shard_degree = parallel.shard_degree or world.local_size
    if size > 1 and parallel.data == "hsdp" and (shard_degree < 1 or size % shard_degree):
        raise UsageError(
            f"parallel.shard_degree = {parallel.shard_degree} (0: all {world.local_size} of a machine): "
            f"{size} ranks cannot be split into copies of the model with {shard_degree} ranks each; give a "
            "number that divides them."
        )
    if size > 1 and train.per_layer:
        raise UsageError(
            f"train.per_layer = true updates a matrix before its gradient is summed over the {size} ranks: "
            "set it to false, or train on one rank."
        )
