"""Optimizer steps over one block of the largest size, as ratios to `torch.optim.AdamW(fused=True)` on dense
weights."""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from common import timed
from torch import nn

from lowrise.runs.build import build_optimizer, model_from
from lowrise.runs.environment import choose_device

from .record import Record
from .training import config_of, sizes

WARM_UP, STEPS = 3, 11
VOCABULARY = 2048  # small, so that the block counts and not the embeddings
BASE = "torch AdamW fused"


def run(options: argparse.Namespace, record: Record) -> None:
    size, device = sizes(options)[-1], choose_device(options.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    record.note(preset=size, layers=1)
    unit: float | None = None
    for name in record.in_time([BASE, *options.methods]):
        with record.row(name) as row:
            method = "adamw" if name == BASE else name
            # Rates of zero: weights stay, so every step does the same work on the same numbers.
            values = {
                "model__num_layers": 1,
                "model__vocab_size": VOCABULARY,
                "optimizer__lr": 0.0,
                "other__lr": 0.0,
            }
            config = config_of(options, method, size, **values)
            model = model_from(config, VOCABULARY, device)
            optimizer = fused(model) if name == BASE else build_optimizer(config, model)
            for p in model.parameters():
                if p.requires_grad:
                    p.grad = torch.randn_like(p).mul_(1e-3)
            seconds = [timed(lambda o=optimizer: o.step(), device) for _ in range(WARM_UP + STEPS)]
            row["first_step_seconds"], row["step_seconds"] = seconds[0], seconds[WARM_UP:]
            row["median_ms"] = 1e3 * statistics.median(seconds[WARM_UP:])
            unit = row["median_ms"] if name == BASE else unit
            row["ratio"] = row["median_ms"] / unit if unit else None


def fused(model: nn.Module) -> Any:
    return torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
