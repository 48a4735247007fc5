"""What a run does between two updates, in every order, leaves the weights as they are: under copies, shared
rows, and copies of shared rows.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from processes import SHARED, on_ranks, parallel_config, supported
from small_runs import trainer_for, write_text

from lowrise.distributed import World
from lowrise.distributed.sharding import whole
from lowrise.inference.generate import sample_of
from lowrise.runs.weights import model_tensors
from lowrise.train.loop import Trainer
from lowrise.train.telemetry import measure, snapshot

pytestmark = pytest.mark.xdist_group("ranks")


def operations(trainer: Trainer) -> dict:
    def telemetry() -> None:
        before = snapshot(trainer.model, trainer.dense_matrices, trainer.world)
        measure(trainer.model, before, trainer.world)

    return {
        "evaluate": lambda: trainer._evaluate(None, whole=False),
        "save": trainer._save,
        "telemetry": telemetry,
        "sample": lambda: sample_of(trainer.model, trainer.config, trainer.corpus.tokenizer, trainer.device),
    }


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: whole(t.detach()).clone() for name, t in model_tensors(trainer.model).items()}


def every_order(world: World, folder: Path, data: str) -> int:
    """Four operations between two updates, in 24 orders, against updates alone; then a resume."""
    orders = list(itertools.permutations(("evaluate", "save", "telemetry", "sample")))
    settings = {
        "train.steps": len(orders) + 1,
        "parallel.data": data,
        "sample.tokens": 2,
    }
    config = parallel_config(folder, "spectron", **settings)
    alone = trainer_for(config, folder / f"alone-{data}", world)
    busy = trainer_for(config, folder / f"busy-{data}", world)
    world.by_rank_0(busy._begin)
    does = operations(busy)
    with busy.saver:
        for order in orders:
            alone.update()
            busy.update()
            for name in order:
                does[name]()
    expected = weights(alone)
    changed = [name for name, tensor in weights(busy).items() if not torch.equal(tensor, expected[name])]
    assert not changed, f"{data}: {changed[:3]}"
    resumed = trainer_for(config, folder / f"busy-{data}", world)
    resumed._resume()
    assert resumed.progress.step == len(orders)
    alone.update()
    resumed.update()
    expected = weights(alone)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed).items())
    return len(orders)


def all_kinds(world: World, folder: Path) -> list[int]:
    return [every_order(world, folder, data) for data in supported(*SHARED)]


def test_every_order_of_operations_leaves_the_weights(tmp_path: Path) -> None:
    write_text(tmp_path / "text.jsonl")
    assert on_ranks(2, tmp_path / "ranks", all_kinds, tmp_path) == [[24] * len(supported(*SHARED))] * 2
