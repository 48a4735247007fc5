"""The line of an update in metrics.jsonl; its keys are described in docs/runs.md."""

from __future__ import annotations

from typing import Any

import torch

from lowrise.distributed import World
from lowrise.ledger.peak import utilization
from lowrise.runs.environment import peak_memory_bytes, precision_of
from lowrise.train.step import TrainStep, Update


def update_record(step: TrainStep, update: Update, seconds: float, world: World) -> dict[str, Any]:
    """What the last update did, in so many seconds. Collective."""
    progress = step.progress
    record: dict[str, Any] = {
        "step": progress.step,
        "tokens": progress.tokens,
        "loss": update.loss,
        "lr": update.lr,
        "grad_norm": update.grad_norm,
        "tokens_per_second": step.plan.tokens_per_step / seconds,
        "step_ms": 1e3 * seconds,
        "skipped": progress.skipped,
        "skipped_units": progress.skipped_units,
    }
    if step.device.type == "cuda":
        record |= device_record(step, seconds, world)
    if world.size > 1:
        record |= _parallel_record(step, seconds, world)
    return record


def device_record(step: TrainStep, seconds: float, world: World) -> dict[str, Any]:
    """Memory of this rank's GPU, and the share of the peak rate that this update reached on all."""
    name, precision = torch.cuda.get_device_name(step.device), precision_of(step.config, step.device)
    mfu = utilization(step.plan.flops_per_step, seconds, world.size, name, precision)
    return {
        "peak_memory_bytes": peak_memory_bytes(step.device),
        "memory_bytes": torch.cuda.memory_allocated(step.device),
        **({} if mfu is None else {"mfu": mfu}),
    }


def _parallel_record(step: TrainStep, seconds: float, world: World) -> dict[str, Any]:
    """What this rank sent in the last update, and the memory of all."""
    communicated = step.communication()
    record: dict[str, Any] = {
        "communicated_bytes": communicated.sent_bytes,
        "peak_memory_bytes": world.gathered(peak_memory_bytes(step.device)),
        "state_bytes": world.gathered(step.optimizer.state_bytes()),
    }
    if step.device.type == "cpu":
        record["communication_wait_ms"] = 1e3 * communicated.seconds
        record["communication_share"] = communicated.seconds / seconds
    return record
