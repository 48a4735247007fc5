"""Every method for 20 updates: finite, resumed to the bit, no wait for the GPU in a step."""

from __future__ import annotations

import argparse
import dataclasses
import math
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowrise.checkpoint import CheckpointStore, Saver
from lowrise.config import RunConfig
from lowrise.distributed import World
from lowrise.methods import METHODS
from lowrise.runs.environment import random_state
from lowrise.runs.weights import model_tensors
from lowrise.train.step import TrainStep

from .record import Record
from .training import config_of, is_small, no_waiting, train_step

UPDATES = 20
# Every other method is watched in all updates but the first, in which libraries start and bases are made.
# Later renewals (GaLore, Fira, APOLLO), LORO's exact steps and ReLoRA's merges come after 100 or more.
WAITING = {"tsvd": "its solvers (QR of the factors) run in every step"}


def run(options: argparse.Namespace, record: Record) -> None:
    # Dense methods share their compiled blocks and go first: so more are reached.
    methods = sorted(options.methods, key=lambda name: METHODS[name].layer != "dense")
    for method in record.in_time(methods):
        with record.row(method) as row:
            row |= checked(config_for(options, method), watched=method not in WAITING)
            if not row["steps_watched_for_waits"]:
                row["not_watched"] = WAITING.get(method, "no GPU")


def config_for(options: argparse.Namespace, method: str, **values: Any) -> RunConfig:
    batch, length = (4, 32) if is_small(options.preset) else (32, 256)
    shape = {
        "train__global_batch_size": batch,
        "train__micro_batch_size": batch // 2,
        "train__seq_len": length,
    }
    return config_of(options, method, options.preset, train__steps=UPDATES, **shape, **values)


def checked(config: RunConfig, watched: bool) -> dict[str, Any]:
    """Train without a break, and again from a checkpoint of the middle."""
    step, losses = train_step(config), []
    watched = watched and step.device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder))
        for number in range(1, UPDATES + 1):
            with no_waiting(step) if watched and number > 1 else nullcontext():
                losses.append(step().loss)
            if number == UPDATES // 2:
                save(step, store)
        again = train_step(config)
        checkpoint = store.newest(print)
        assert checkpoint is not None
        again.load(checkpoint)
        resumed = [again().loss for _ in range(UPDATES - again.progress.step)]
    mine, theirs = tensors_of(step), tensors_of(again)
    different = [name for name, t in mine.items() if name not in theirs or not equal(t, theirs[name])]
    return {
        "finite": all(map(math.isfinite, losses)) and not step.progress.skipped,
        "resumed_to_the_bit": not different and resumed == losses[-len(resumed) :],
        "steps_watched_for_waits": UPDATES - 1 if watched else 0,
        "different": different[:5],
        "losses": losses,
    }


def save(step: TrainStep, store: CheckpointStore) -> None:
    parts = {
        "model": model_tensors(step.model),
        "optimizer": step.optimizer.named_state(),
        "random": random_state(step.device),
    }
    saver = Saver(store, World(), keep=1, asynchronous=False)
    saver.save(step.progress.step, parts, dataclasses.asdict(step.progress))


def tensors_of(step: TrainStep) -> dict[str, Tensor]:
    """Weights and state, without those of a rank among several."""
    state = {f"optimizer {name}": t for name, t in step.optimizer.named_state().items()}
    return model_tensors(step.model) | state


def equal(one: Tensor, other: Tensor) -> bool:
    parts = [t.to_local() if hasattr(t, "to_local") else t for t in (one.detach(), other.detach())]
    return torch.equal(*parts)
