"""What N ranks send and keep, for every method and way to share a model: gloo processes on this machine.

Each method trains the same few updates of a small preset on 1, 2, 4 ... ranks; at each size, once per way.

sent         bytes that a rank sends in one update, counted where they are handed over (a ring for sums), the
             mean of the ranks
formula      docs/parallel.md's, from shapes, ranks and micro-batches alone
state        bytes of optimizer state, at the ranks with the least and the most
1 / N        state on one rank over N
loss         largest difference of a loss from that of one rank, relative
waiting      median share of an update in which a rank waits for others; ranks share this machine's cores, so
             it says nothing about a network

    python benchmarks/ranks.py [--ranks 1 2 4] [--preset nano] [--updates 4] [--only spectron muon]
"""

from __future__ import annotations

import argparse
import io
import os
import socket
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from common import publish

from lowrise.config import RunConfig, load
from lowrise.console import Console
from lowrise.data import prepare
from lowrise.distributed import World
from lowrise.methods import METHODS
from lowrise.runs.plan import plan_of
from lowrise.train import RunDirectory
from lowrise.train.display import Display
from lowrise.train.loop import Trainer

CPU = torch.device("cpu")
WAYS = ("ddp", "fsdp")


@dataclass(frozen=True)
class Options:
    preset: str
    updates: int
    sequences: int
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """Of one method on one number of ranks, at one rank."""

    sent: float
    formula: float
    state: int
    losses: list[float]
    waiting: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=list(METHODS))
    arguments = parser.parse_args()
    sequences = 2 * max(arguments.ranks)
    options = Options(arguments.preset, arguments.updates, sequences, tuple(arguments.only))
    prepare(config_of(options, options.methods[0], "ddp").data)
    measured = {size: on_ranks(size, options) for size in arguments.ranks}
    publish(
        f"ranks_{options.preset}_cpu",
        f"{options.preset}, {options.updates} updates of {sequences} sequences, gloo",
        ("method", "way", "ranks", "sent", "formula", "state", "1 / N", "loss", "waiting"),
        [row for method in options.methods for row in rows_of(method, measured)],
        {"updates": options.updates, "sequences": sequences},
        CPU,
    )


def rows_of(method: str, measured: dict[int, list[dict[tuple[str, str], Measured]]]) -> list[tuple[str, ...]]:
    one = measured[min(measured)][0][method, WAYS[0]]
    rows = []
    for way in WAYS:
        for size, ranks in measured.items():
            own = [rank[method, way] for rank in ranks]
            if size == 1 and way != WAYS[0]:
                continue  # nothing is shared
            states = [m.state for m in own]
            least, most = min(states), max(states)
            difference = max(abs(a - b) / a for a, b in zip(one.losses, own[0].losses, strict=True))
            rows.append(
                (
                    method,
                    way if size > 1 else "-",
                    str(size),
                    f"{statistics.mean(m.sent for m in own):,.0f}",
                    f"{statistics.mean(m.formula for m in own):,.0f}",
                    f"{least:,}" if least == most else f"{least:,} to {most:,}",
                    f"{one.state // size:,}",
                    f"{difference:.1e}",
                    f"{statistics.median(m.waiting for m in own):.0%}",
                )
            )
    return rows


def config_of(options: Options, method: str, way: str) -> RunConfig:
    return load(
        None,
        {
            "method": method,
            "model.preset": options.preset,
            "train.steps": options.updates,
            "train.global_batch_size": options.sequences,
            "train.seq_len": 64,
            "train.device": "cpu",
            "train.threads": 1,
            "parallel.data": way,
            # Small presets have small factors: what is measured is sharing, not the threshold.
            "parallel.replicate_below": 257,
        },
    )


def on_ranks(size: int, options: Options) -> list[dict[tuple[str, str], Measured]]:
    """Measurements by rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    results = [context.SimpleQueue() for _ in range(size)]
    processes = [
        context.Process(target=measure, args=(World(rank, size, rank), port, options, results[rank]))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()  # what a rank puts fits into the pipe, so it need not be read first
    if any(process.exitcode for process in processes):
        raise SystemExit(f"A rank of {size} has failed; its error is above.")
    return [queue.get() for queue in results]


def measure(world: World, port: int, options: Options, results: torch.multiprocessing.SimpleQueue) -> None:
    """At one rank: every method."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with world.joined(CPU), tempfile.TemporaryDirectory() as folder:
        results.put(
            {
                (method, way): measure_method(world, options, method, way, Path(folder))
                for method in options.methods
                for way in WAYS
            }
        )


def measure_method(world: World, options: Options, method: str, way: str, folder: Path) -> Measured:
    config = config_of(options, method, way)
    display = Display(Console(file=io.StringIO()), options.updates)
    trainer = Trainer(config, prepare(config.data), RunDirectory(folder), display, world)
    losses, waiting, formula = [], [], 0.0
    for _ in range(options.updates):
        # Before the update: an adaptive rank changes at its end.
        formula = plan_of(config, trainer.model, trainer.optimizer, world).communicated_bytes
        started = time.perf_counter()
        losses.append(trainer.update().loss)
        waiting.append(trainer.communication().seconds / (time.perf_counter() - started))
    return Measured(
        sent=trainer.communication().sent_bytes,
        formula=formula,
        state=trainer.optimizer.state_bytes(),
        losses=losses,
        waiting=statistics.median(waiting),
    )


if __name__ == "__main__":
    main()
