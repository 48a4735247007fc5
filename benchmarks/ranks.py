"""What N ranks send, keep and compute, for every method: gloo processes on this machine.

Each method trains the same few updates of a small preset on 1, 2, 4 ... ranks.

payload      bytes that a rank hands to all-reduce in one update, counted where they are handed over
formula      bytes of the gradients: 4 a trainable parameter in float32. A ring sends 2 (N - 1) / N times as
             much over each rank's link
state        bytes of optimizer state at each rank (replicated: the same for any N)
loss         largest difference of a logged loss from that of one rank, relative
wait         median time a rank waits for sums after its backward pass; ranks share this machine's cores, so
             it says nothing about a network

    python benchmarks/ranks.py [--ranks 1 2 4] [--preset nano] [--updates 6] [--only spectron muon]
"""

from __future__ import annotations

import argparse
import io
import os
import socket
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from common import publish
from rich.console import Console

from lowrise.config import RunConfig, load
from lowrise.data import prepare
from lowrise.dist import World
from lowrise.methods import METHODS
from lowrise.train import RunDirectory
from lowrise.train.display import Display
from lowrise.train.loop import Trainer

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Options:
    preset: str
    updates: int
    sequences: int
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """Of one method on one number of ranks, at one rank."""

    payload_bytes: int
    gradient_bytes: int
    state_bytes: int
    losses: list[float]
    wait_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=list(METHODS))
    arguments = parser.parse_args()
    sequences = 2 * max(arguments.ranks)
    options = Options(arguments.preset, arguments.updates, sequences, tuple(arguments.only))
    prepare(config_of(options, options.methods[0]).data)
    measured = {size: on_ranks(size, options) for size in arguments.ranks}
    publish(
        f"ranks_{options.preset}_cpu",
        f"{options.preset}, {options.updates} updates of {sequences} sequences, gloo",
        ("method", "ranks", "payload", "formula", "ring sends", "state a rank", "loss", "wait ms"),
        [row for method in options.methods for row in rows_of(method, measured)],
        {"updates": options.updates, "sequences": sequences},
        CPU,
    )


def rows_of(method: str, measured: dict[int, list[dict[str, Measured]]]) -> list[tuple[str, ...]]:
    one = measured[min(measured)][0][method].losses
    rows = []
    for size, ranks in measured.items():
        own = [rank[method] for rank in ranks]
        first = own[0]
        states = sorted({m.state_bytes for m in own})
        difference = max(abs(a - b) / a for a, b in zip(one, first.losses, strict=True))
        rows.append(
            (
                method,
                str(size),
                f"{first.payload_bytes:,}",
                f"{first.gradient_bytes if size > 1 else 0:,}",
                f"{2 * (size - 1) * first.payload_bytes // size:,}",
                " or ".join(f"{s:,}" for s in states),
                f"{difference:.1e}",
                f"{statistics.median(m.wait_ms for m in own):.2f}",
            )
        )
    return rows


def config_of(options: Options, method: str) -> RunConfig:
    return load(
        None,
        {
            "method": method,
            "model.preset": options.preset,
            "train.steps": options.updates,
            "train.sequences": options.sequences,
            "train.seq_len": 64,
            "train.device": "cpu",
            "train.threads": 1,
        },
    )


def on_ranks(size: int, options: Options) -> list[dict[str, Measured]]:
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
            {method: measure_method(world, options, method, Path(folder)) for method in options.methods}
        )


def measure_method(world: World, options: Options, method: str, folder: Path) -> Measured:
    config = config_of(options, method)
    display = Display(Console(file=io.StringIO()), options.updates)
    trainer = Trainer(config, prepare(config.data), RunDirectory(folder), display, world)
    losses, waits = [], []
    for _ in range(options.updates):
        losses.append(trainer.update().loss)
        waits.append(1e3 * trainer.gradients.wait_seconds)
    return Measured(
        payload_bytes=trainer.gradients.payload_bytes,
        gradient_bytes=sum(p.nbytes for p in trainer.model.parameters() if p.requires_grad),
        state_bytes=trainer.optimizer.state_bytes(),
        losses=losses,
        wait_ms=statistics.median(waits),
    )


if __name__ == "__main__":
    main()
