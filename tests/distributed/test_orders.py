"""What a run does between two updates, in every order, leaves the weights as they are: under copies, shared
rows, and copies of shared rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from processes import SHARED, on_ranks, parallel_config, supported
from small_runs import trainer_for, write_text

from lowrise.config import RunConfig
from lowrise.distributed import World
from lowrise.distributed.sharding import whole
from lowrise.inference.generate import sample_of
from lowrise.runs.weights import model_tensors
from lowrise.train.loop import Trainer
from lowrise.train.telemetry import measure, snapshot

pytestmark = pytest.mark.xdist_group("ranks")

Order = tuple[str, ...]
Weights = dict[str, torch.Tensor]


def some_orders() -> list[Order]:
    """Every order of four operations, with a resume at one of the five places in turn."""
    orders = enumerate(itertools.permutations(("evaluate", "save", "telemetry", "sample")))
    return [(*order[: i % 5], "resume", *order[i % 5 :]) for i, order in orders]


def all_orders() -> list[Order]:
    return list(itertools.permutations(("evaluate", "save", "telemetry", "sample", "resume")))


class Run:
    """One run of the ranks, over all the trainers that it goes on in."""

    def __init__(self, config: RunConfig, folder: Path, world: World) -> None:
        self.config, self.folder, self.world = config, folder, world
        self.trainer = trainer_for(config, folder, world)
        world.by_rank_0(self.trainer._begin)

    def resume(self) -> None:
        """As in a new process: new parts, at the newest checkpoint, or at the first weights."""
        self.trainer.keeping.saver.__exit__(
            None, None, None
        )  # ends its group: the threads of hundreds take the time
        self.trainer = trainer_for(self.config, self.folder, self.world)
        self.trainer._resume()

    def do(self, operation: str) -> None:
        trainer = self.trainer
        match operation:
            case "evaluate":
                trainer._evaluate(None, whole=False)
            case "save":
                trainer.keeping.save()
            case "telemetry":
                before = snapshot(trainer.model, trainer.dense_matrices, trainer.world)
                measure(trainer.model, before, trainer.world)
            case "sample":
                sample_of(trainer.model, trainer.config, trainer.corpus.tokenizer, trainer.device)
            case "resume":
                self.resume()


def weights(trainer: Trainer) -> Weights:
    return {name: whole(t.detach()).clone() for name, t in model_tensors(trainer.model).items()}


def updates_alone(trainer: Trainer) -> Iterator[Weights]:
    """The weights after 0, 1, 2, ... updates and nothing else."""
    while True:
        yield weights(trainer)
        trainer.update()


def try_orders(world: World, folder: Path, data: str, orders: list[Order]) -> int:
    """An update and the operations of an order, one order after the other: wherever the run stands then, its
    weights are those of so many updates alone. Returns how many updates that is in the end.
    """
    settings = {"train.steps": len(orders) + 1, "sample.tokens": 2, **SHARED[data]}
    config = parallel_config(folder, "spectron", **settings)
    alone = updates_alone(trainer_for(config, folder / f"alone-{data}", world))
    expected = [next(alone)]
    run = Run(config, folder / f"busy-{data}", world)
    for order in orders:
        run.trainer.update()
        for operation in order:
            run.do(operation)
        step = run.trainer.progress.step
        expected += itertools.islice(alone, max(0, step + 1 - len(expected)))
        now = weights(run.trainer)
        changed = [name for name, tensor in now.items() if not torch.equal(tensor, expected[step][name])]
        assert not changed, f"{data}: an update, {', '.join(order)}, and at step {step} differ {changed[:3]}"
    run.trainer.keeping.saver.finish()
    return step


def on_every_kind(world: World, folder: Path, orders: list[Order]) -> list[int]:
    return [try_orders(world, folder, data, orders) for data in supported(*SHARED)]


def lasting_updates(orders: list[Order]) -> int:
    """The step after the orders: a resume goes back to the last save."""
    step = saved = 0
    for order in orders:
        step += 1
        for operation in order:
            saved = step if operation == "save" else saved
            step = saved if operation == "resume" else step
    return step


@pytest.mark.parametrize(
    "orders",
    [
        pytest.param(some_orders(), id="resume-in-turn"),
        pytest.param(all_orders(), id="all", marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_every_order_of_operations_leaves_the_weights(orders: list[Order], tmp_path: Path) -> None:
    write_text(tmp_path / "text.jsonl")
    steps = on_ranks(2, tmp_path / "ranks", on_every_kind, tmp_path, orders, seconds=60.0 * len(orders))
    assert steps == [[lasting_updates(orders)] * len(supported(*SHARED))] * 2
