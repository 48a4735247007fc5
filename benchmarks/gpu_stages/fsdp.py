"""One rank that shares its weights by rows with itself: FSDP2 over NCCL (gloo on a CPU), the trainer's
update, checkpoint and resume, beside the same run without it."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.distributed as dist

from lowrise.config import RunConfig
from lowrise.distributed import World
from lowrise.distributed.fsdp import mesh_of, shard_model
from lowrise.distributed.sharding import ShardGroup
from lowrise.runs.build import model_from
from lowrise.runs.environment import choose_device
from lowrise.runs.parallel import Shared, copied_parameters

from .methods import checked, config_for
from .record import Record

METHODS = ("adamw", "spectron")


def run(options: argparse.Namespace, record: Record) -> None:
    device = choose_device(options.device)
    record.note(backend="nccl" if device.type == "cuda" else "gloo", torch=torch.__version__)
    with one_rank(device):
        for method in record.in_time(METHODS):
            with record.row(method) as row:
                config = config_for(options, method)
                plain = checked(config, watched=False)["losses"]
                # The trainer shares nothing with one rank by itself; here it is told to.
                with patch("lowrise.train.step.shared_model", sharded):
                    row |= checked(config, watched=False)
                row["largest_loss_difference"] = max(
                    abs(a - b) for a, b in zip(plain, row["losses"], strict=True)
                )
                row["as_without_fsdp"] = row["largest_loss_difference"] <= 1e-2


@contextmanager
def one_rank(device: torch.device) -> Iterator[None]:
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def sharded(config: RunConfig, vocab_size: int, world: World, device: torch.device) -> Shared:
    """As `runs.parallel.shared_model` for several ranks."""
    model = model_from(config, vocab_size, torch.device("meta"))
    mesh = mesh_of(world, device, 1)
    copies = copied_parameters(model, config.parallel.replicate_below)
    traffic = shard_model(model, list(model.model.layers), mesh, keep_whole=copies)
    model.to_empty(device=device)
    model.init_weights(config.seed)
    return Shared(model, ShardGroup(mesh.get_group(0), 1, 0), traffic)
