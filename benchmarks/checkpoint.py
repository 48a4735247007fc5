"""How long training stands still for a checkpoint and how long a save takes, beside torch.save and a flush.

Weights and the state of AdamW of a preset, float32, saved by lowrise and by `torch.save` in turn, in every
round after an update of 2,048 tokens. "stall": from the call of `Saver.save` until training may go on, with
no save under way; "save": until the checkpoint is on the disk. Both write new files, keep
two and delete older ones. Times are of the clock, medians over the rounds after the first, which stands by
itself: memory for the copies is taken there.

    python benchmarks/checkpoint.py [--preset 60m] [--rounds 5] [--folder DIR]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import publish
from torch import Tensor

from lowrise.allocator import keep_freed_memory
from lowrise.checkpoint import CheckpointStore, Saver
from lowrise.config import load
from lowrise.distributed import World
from lowrise.model import next_token_loss
from lowrise.runs.build import build_optimizer, model_from

VOCABULARY = 32_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="60m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to write; default: a temporary folder")
    options = parser.parse_args()
    keep_freed_memory()  # as the command does
    torch.set_num_threads(1)
    config = load(None, {"model.preset": options.preset, "method": "adamw"})
    model = model_from(config, VOCABULARY, torch.device("cpu"))
    optimizer = build_optimizer(config, model)
    parts = {"model": model.state_dict(), "optimizer": optimizer.named_state()}
    tensors = [t for part in parts.values() for t in part.values()]
    size = sum(t.numel() * t.element_size() for t in tensors)
    tokens = torch.randint(VOCABULARY, (8, 257))
    times: dict[str, list[float]] = {"stall": [], "save": [], "torch.save": []}
    processor: dict[str, list[float]] = {"save": [], "torch.save": []}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        saver = Saver(CheckpointStore(Path(folder)), World(), keep=2)
        with saver:
            for number in range(options.rounds + 1):
                next_token_loss(model, tokens).backward()
                optimizer.step(grad_norm=1.0)
                optimizer.zero_grad()
                started, worked = time.perf_counter(), time.process_time()
                saver.save(number, parts, {})
                times["stall"].append(time.perf_counter() - started)
                saver.finish()
                times["save"].append(time.perf_counter() - started)
                processor["save"].append(time.process_time() - worked)
                started, worked = time.perf_counter(), time.process_time()
                plain_save(parts, Path(folder) / f"plain-{number}.pt")
                (Path(folder) / f"plain-{number - 2}.pt").unlink(missing_ok=True)
                times["torch.save"].append(time.perf_counter() - started)
                processor["torch.save"].append(time.process_time() - worked)
    median = {name: statistics.median(values[1:]) for name, values in times.items()}
    save = statistics.median(a / b for a, b in zip(times["save"][1:], times["torch.save"][1:], strict=True))
    columns = ("", "first s", "median s", "least s", "over torch.save", "processor s")
    ratios = {"stall": median["stall"] / median["torch.save"], "save": save, "torch.save": 1.0}
    rows = [
        (
            name,
            f"{kept[0]:.3f}",
            f"{median[name]:.3f}",
            f"{min(kept[1:]):.3f}",
            f"{ratios[name]:.2f}",
            f"{statistics.median(processor[name][1:]):.2f}" if name in processor else "-",
        )
        for name, kept in times.items()
    ]
    title = (
        f"A checkpoint of {size / 1e6:,.0f} MB ({options.preset}, AdamW, float32), one thread: stall, save, "
        f"torch.save and flush"
    )
    record = {"bytes": size, "seconds": times, "processor_seconds": processor, "options": vars(options)}
    publish(f"checkpoint_{options.preset}_cpu", title, columns, rows, record, torch.device("cpu"))


def plain_save(parts: dict[str, dict[str, Tensor]], path: Path) -> None:
    with path.open("wb") as stream:
        torch.save(parts, stream)
        stream.flush()
        os.fsync(stream.fileno())


if __name__ == "__main__":
    main()
