"""Tokens a second, memory and share of the peak rate, dense and factored, over the published sizes."""

from __future__ import annotations

import argparse
import statistics

import torch
from common import timed

from lowrise.ledger import plan_memory
from lowrise.ledger.peak import utilization
from lowrise.runs.environment import peak_memory_bytes, precision_of

from .record import Record
from .training import config_of, is_small, sizes, train_step

FAMILIES = {"dense": "adamw", "factored": "lowrank"}
GOALS = {"dense 1b": 0.50, "factored 60m": 0.40, "factored 350m": 0.40, "factored 1b": 0.40}
SEQUENCES = {"60m": 32, "350m": 16, "1b": 8}  # of 1,024 tokens, a forward pass; four of them an update
WARM_UP, UPDATES = 3, 7


def run(options: argparse.Namespace, record: Record) -> None:
    # The largest first: it has the goal, and time may end.
    names = [f"{family} {size}" for size in reversed(sizes(options)) for family in FAMILIES]
    for name in record.in_time(names):
        with record.row(name) as row:
            row |= measured(options, *name.split())
            row["goal_mfu"] = GOALS.get(name)


def measured(options: argparse.Namespace, family: str, size: str) -> dict[str, object]:
    micro, length = (2, 64) if is_small(size) else (SEQUENCES.get(size, 8), 1024)
    config = config_of(
        options,
        FAMILIES[family],
        size,
        train__steps=WARM_UP + UPDATES,
        train__micro_batch_size=micro,
        train__global_batch_size=4 * micro,
        train__seq_len=length,
        train__deterministic=False,
    )
    torch._dynamo.reset()
    step = train_step(config)
    for _ in range(WARM_UP):
        step()
    seconds = [timed(step, step.device) for _ in range(UPDATES)]
    median, precision = statistics.median(seconds), precision_of(config, step.device)
    name = torch.cuda.get_device_name(step.device) if step.device.type == "cuda" else "cpu"
    return {
        "tokens_per_second": step.plan.tokens_per_step / median,
        "update_seconds": seconds,
        "flops_per_update": step.plan.flops_per_step,
        "tflops_per_second": step.plan.flops_per_step / median / 1e12,
        "mfu": utilization(step.plan.flops_per_step, median, 1, name, precision),
        "peak_memory_bytes": peak_memory_bytes(step.device),
        "planned_bytes": plan_memory(
            step.model, step.optimizer.param_groups, type(step.optimizer)
        ).total_bytes,
        "params": step.plan.params_total,
        "precision": precision,
        "batch": [4, micro, length],
    }
